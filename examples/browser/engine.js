// What enhances: an exported ONNX stream in this browser, in a worker. The page is that of `slimse serve`.

export const contextRate = 16000 // of the model: the browser resamples files and microphone

export const privacy = 'Your sound stays in this browser.'

const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' })
const waiting = new Map()
let calls = 0
let notes

worker.onmessage = ({ data: { call, done, error, ...rest } }) => {
  const entry = waiting.get(call)
  if (!entry) return
  if (error) entry.reject(new Error(error))
  else if (done) entry.resolve(rest)
  else entry.progress(rest)
  if (error || done) waiting.delete(call)
}
worker.onerror = ({ message }) => {
  for (const { reject } of waiting.values()) reject(new Error(message || 'The worker cannot start.'))
  waiting.clear()
}

function ask(kind, content = {}, transfer = [], progress = () => {}) {
  const call = ++calls
  worker.postMessage({ call, kind, ...content }, transfer)
  const answer = new Promise((resolve, reject) => waiting.set(call, { resolve, reject, progress }))
  return Object.assign(answer, { call })
}

export async function about() {
  notes = (await ask('open')).notes
  const uf = Number(notes.ufs)
  const latency = 1000 * notes.latency / notes.sample_rate
  return {
    ufs: [uf],
    settings: [{ label: `UF ${uf}`, uf }],
    frame_ms: 1000 * notes.hop_length / notes.sample_rate,
    text: `An ONNX stream at UF ${uf} and ${notes.sample_rate / 1000} kHz, latency ${latency.toFixed(1)} ms, in this browser.`,
  }
}

export async function enhance(sound, setting, signal, progress) {
  const { decibels, encodeWav, mono } = await import('./sound.js')
  const noisy = mono(sound.buffer), rate = contextRate
  const answer = ask('enhance', { samples: noisy }, [], ({ share }) => progress(share))
  signal.addEventListener('abort', () => worker.postMessage({ call: answer.call, kind: 'stop' }))
  const { samples, took } = await answer
  const seconds = noisy.length / rate, frames = Math.ceil(noisy.length / notes.hop_length)
  return {
    samples,
    wav: encodeWav([samples], rate),
    ufs: Array(frames).fill(setting.uf),
    uf: setting.uf,
    macs_per_sample: notes.macs_per_sample,
    share: notes.share,
    took,
    real_time_factor: took / seconds,
    seconds,
    sample_rate: rate,
    channels: 1,
    level: decibels(noisy),
    enhanced_level: decibels(samples),
  }
}

export function live(rate, setting, { block, report, closed }) {
  let open = true, enabled = setting.enabled, underway = 0
  const answer = ask('live', {}, [], (found) => {
    if (!open) return
    underway -= found.samples.length
    block(enabled ? found.samples : found.noisy)
    if (found.report) report({ ...found.report, frames: [[setting.uf, null, found.report.noise]] })
  })
  answer.then(() => closed(''), (error) => closed(error.message))
  report({ delay_ms: 1000 * notes.latency / notes.sample_rate })
  return {
    send(samples) {
      // Sound that has to wait for half a second would only be late.
      if (!open || underway > rate / 2) return
      underway += samples.length
      worker.postMessage({ call: answer.call, kind: 'samples', samples }, [samples.buffer])
    },
    set(changes) { enabled = changes.enabled ?? enabled },
    close() {
      open = false
      worker.postMessage({ call: answer.call, kind: 'stop' })
    },
  }
}
