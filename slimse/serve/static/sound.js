// Sound in the browser: files, recordings, and a player whose switch keeps the position.

const FADE = 0.015

export class Player {
  // Plays two signals at once and lets one of them be heard, so that the switch loses no sample.
  constructor(context, ended) {
    Object.assign(this, { context, ended, buffers: {}, heard: 'enhanced', playing: false, offset: 0, sources: [] })
    this.gains = {}
    for (const name of ['noisy', 'enhanced']) {
      this.gains[name] = context.createGain()
      this.gains[name].connect(context.destination)
    }
    this.apply(0)
  }

  get duration() { return this.buffers.noisy ? this.buffers.noisy.duration : 0 }

  get position() {
    if (!this.playing) return this.offset
    return Math.min(this.duration, this.offset + Math.max(0, this.context.currentTime - this.started))
  }

  put(name, buffer) {
    // Takes another signal in the place of the one before, at the same position.
    const place = this.position
    this.buffers[name] = buffer
    if (this.playing) this.start(place)
    else this.apply(0)
  }

  choose(name) {
    this.heard = name
    this.apply(FADE)
  }

  audible() {
    // Until there is an enhanced signal, the noisy one is heard.
    return this.buffers[this.heard] ? this.heard : 'noisy'
  }

  apply(fade) {
    const now = this.context.currentTime
    for (const [name, node] of Object.entries(this.gains)) {
      node.gain.cancelScheduledValues(now)
      node.gain.setValueAtTime(node.gain.value, now)
      node.gain.linearRampToValueAtTime(name === this.audible() ? 1 : 0, now + Math.max(fade, 0.001))
    }
  }

  async play() {
    await this.context.resume()
    this.start(this.offset >= this.duration - 0.01 ? 0 : this.offset)
  }

  start(place) {
    this.stopSources()
    this.offset = place
    this.started = this.context.currentTime + 0.01
    for (const [name, buffer] of Object.entries(this.buffers)) {
      if (!buffer) continue
      const source = this.context.createBufferSource()
      source.buffer = buffer
      source.connect(this.gains[name])
      source.start(this.started, Math.min(place, buffer.duration))
      if (name === 'noisy') source.onended = () => this.finish()
      this.sources.push(source)
    }
    this.playing = true
    this.apply(0)
  }

  stopSources() {
    for (const source of this.sources) {
      source.onended = null
      source.stop()
      source.disconnect()
    }
    this.sources = []
  }

  pause() {
    this.offset = this.position
    this.stopSources()
    this.playing = false
  }

  finish() {
    this.stopSources()
    this.playing = false
    this.offset = this.duration
    this.ended()
  }

  seek(place) {
    if (this.playing) this.start(place)
    else this.offset = place
  }
}

export async function openMicrophone(context, receive) {
  // The browser's own noise suppression would be heard instead of ours. `receive` gets Float32Array blocks of 10 ms.
  if (!navigator.mediaDevices) {
    throw new Error('The browser gives the microphone to https pages and to localhost alone.')
  }
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 }
  const stream = await navigator.mediaDevices.getUserMedia({ audio: plain })
  try {
    await context.resume()
    await context.audioWorklet.addModule(new URL('worklet.js', import.meta.url))
    const source = context.createMediaStreamSource(stream)
    const options = { numberOfInputs: 1, numberOfOutputs: 1, outputChannelCount: [1] }
    const node = new AudioWorkletNode(context, 'slimse-live', { ...options, processorOptions: { seconds: 0.01 } })
    node.port.onmessage = ({ data }) => receive(data)
    source.connect(node).connect(context.destination)
    return {
      play: (block) => node.port.postMessage(block, [block.buffer]),
      close() {
        node.port.onmessage = null
        node.port.postMessage(null)
        source.disconnect()
        node.disconnect()
        for (const track of stream.getTracks()) track.stop()
      },
    }
  } catch (error) {
    for (const track of stream.getTracks()) track.stop()
    throw error
  }
}

export function toBuffer(context, samples) {
  const buffer = context.createBuffer(1, samples.length, context.sampleRate)
  buffer.copyToChannel(samples, 0)
  return buffer
}

export function mono(buffer) {
  const out = new Float32Array(buffer.length)
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel)
    for (let i = 0; i < out.length; i++) out[i] += samples[i] / buffer.numberOfChannels
  }
  return out
}

export function encodeWav(channels, rate) {
  // 16-bit WAV of Float32Arrays, one per channel.
  const count = channels[0].length, width = 2 * channels.length
  const view = new DataView(new ArrayBuffer(44 + count * width))
  const text = (at, word) => [...word].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)))
  text(0, 'RIFF'); view.setUint32(4, 36 + count * width, true); text(8, 'WAVEfmt ')
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, channels.length, true)
  view.setUint32(24, rate, true); view.setUint32(28, rate * width, true)
  view.setUint16(32, width, true); view.setUint16(34, 16, true)
  text(36, 'data'); view.setUint32(40, count * width, true)
  let at = 44
  for (let i = 0; i < count; i++) {
    for (const samples of channels) {
      view.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(32768 * samples[i]))), true)
      at += 2
    }
  }
  return new Blob([view.buffer], { type: 'audio/wav' })
}

export function decibels(samples) {
  let sum = 0
  for (const value of samples) sum += value * value
  return sum ? 10 * Math.log10(sum / samples.length) : null
}
