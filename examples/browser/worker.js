// Runs the exported model away from the page, so that the page stays quick.

import * as ort from './ort/ort.wasm.min.mjs'

const REPORT_SECONDS = 0.1
ort.env.wasm.numThreads = 1
ort.env.wasm.wasmPaths = new URL('ort/', import.meta.url).href

let session, notes
let last = Promise.resolve()
const live = new Map()
const stopped = new Set()

function run(feeds) {
  // One call at a time, whoever asks.
  const next = last.then(() => session.run(feeds))
  last = next.catch(() => {})
  return next
}

class Stream {
  // As `slimse.OnnxStreamer`: the outputs, one after the other, are as long as the input and aligned with it.
  constructor() {
    this.call = notes.hop_length * notes.frames_per_call
    this.names = Object.keys(notes).filter((key) => /^state_.*_shape$/.test(key)).map((key) => key.replace(/_shape$/, ''))
    this.states = {}
    for (const name of this.names) {
      const shape = notes[`${name}_shape`].split(',').map(Number)
      this.states[name] = new ort.Tensor('float32', new Float32Array(shape[0] * shape[1]), shape)
    }
    this.waiting = new Float32Array(notes.lead)
  }

  async once(samples, end) {
    const feeds = {
      samples: new ort.Tensor('float32', samples, [1, this.call]),
      end: new ort.Tensor('int32', Int32Array.of(end), [1]),
      ...this.states,
    }
    const results = await run(feeds)
    for (const name of this.names) this.states[name] = results[`new_${name}`]
    return results.enhanced.data
  }

  // All outputs, those before the signal included, of which there are `delay`.
  async feed(samples) {
    const joined = join([this.waiting, samples]), pieces = []
    let at = 0
    for (; joined.length - at >= this.call; at += this.call) {
      pieces.push(await this.once(joined.slice(at, at + this.call), -1))
    }
    this.waiting = joined.slice(at)
    return join(pieces)
  }

  async flush() {
    const rest = new Float32Array(this.call)
    rest.set(this.waiting)
    return this.once(rest, this.waiting.length)
  }
}

function join(pieces) {
  const out = new Float32Array(pieces.reduce((sum, piece) => sum + piece.length, 0))
  let at = 0
  for (const piece of pieces) {
    out.set(piece, at)
    at += piece.length
  }
  return out
}

async function enhance(call, samples) {
  const start = performance.now(), stream = new Stream(), pieces = []
  const step = notes.sample_rate
  for (let at = 0; at < samples.length; at += step) {
    // Lets a message that stops it come in.
    await new Promise((resolve) => setTimeout(resolve))
    if (stopped.delete(call)) throw new Error('stopped')
    pieces.push(await stream.feed(samples.subarray(at, at + step)))
    postMessage({ call, share: Math.min(1, (at + step) / samples.length) })
  }
  pieces.push(await stream.flush())
  const out = join(pieces).slice(notes.delay, notes.delay + samples.length)
  postMessage({ call, done: true, samples: out, took: (performance.now() - start) / 1000 }, [out.buffer])
}

class Live {
  constructor(call) {
    Object.assign(this, { call, stream: new Stream(), late: new Float32Array(notes.delay), order: Promise.resolve() })
    Object.assign(this, { busy: 0, count: 0, noise: 0 })
  }

  take(samples) {
    this.order = this.order.then(() => this.enhance(samples)).catch((error) => fail(this.call, error))
  }

  async enhance(samples) {
    const start = performance.now()
    const out = await this.stream.feed(samples)
    this.busy += (performance.now() - start) / 1000
    this.late = join([this.late, samples])
    if (!out.length) return
    const noisy = this.late.slice(0, out.length)
    this.late = this.late.slice(out.length)
    for (let i = 0; i < out.length; i++) this.noise += (noisy[i] - out[i]) ** 2
    this.count += out.length
    let report
    const seconds = this.count / notes.sample_rate
    if (seconds >= REPORT_SECONDS) {
      report = { load: this.busy / seconds, noise: 10 * Math.log10(this.noise / this.count + 1e-12) }
      this.busy = this.count = this.noise = 0
    }
    postMessage({ call: this.call, samples: out, noisy, report })
  }
}

function fail(call, error) { postMessage({ call, error: error.message || String(error) }) }

async function open() {
  if (session) return
  notes = await (await fetch(new URL('model.json', import.meta.url))).json()
  for (const name of ['sample_rate', 'hop_length', 'frames_per_call', 'lead', 'delay', 'latency']) {
    notes[name] = Number(notes[name])
  }
  const model = new URL('model.onnx', import.meta.url).href
  session = await ort.InferenceSession.create(model, { executionProviders: ['wasm'] })
}

onmessage = async ({ data: { call, kind, samples } }) => {
  try {
    if (kind === 'open') {
      await open()
      postMessage({ call, done: true, notes })
    } else if (kind === 'enhance') {
      await enhance(call, samples)
    } else if (kind === 'live') {
      live.set(call, new Live(call))
    } else if (kind === 'samples') {
      live.get(call)?.take(samples)
    } else if (live.delete(call)) {
      postMessage({ call, done: true })
    } else {
      stopped.add(call)
    }
  } catch (error) {
    fail(call, error)
  }
}
