// Takes the microphone in blocks and plays the blocks that come back, which network and threads deliver unevenly.

const HELD = 0.06 // seconds that wait before playing starts, and after a gap
const MOST = 0.4 // seconds that may wait before some are left out

class Live extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super()
    this.block = new Float32Array(Math.round(processorOptions.seconds * sampleRate))
    this.filled = 0
    this.waiting = []
    this.count = 0
    this.first = 0
    this.started = false
    this.open = true
    this.port.onmessage = ({ data }) => this.take(data)
  }

  take(samples) {
    if (samples === null) {
      this.open = false
      return
    }
    this.waiting.push(samples)
    this.count += samples.length
    while (this.count > MOST * sampleRate) this.drop()
  }

  drop() {
    this.count -= this.waiting.shift().length - this.first
    this.first = 0
  }

  process([input], [output]) {
    if (input.length) this.record(input[0])
    const out = output[0]
    this.started = this.started ? this.count > 0 : this.count >= HELD * sampleRate
    for (let at = 0; this.started && at < out.length && this.count > 0;) {
      const samples = this.waiting[0]
      const size = Math.min(out.length - at, samples.length - this.first)
      out.set(samples.subarray(this.first, this.first + size), at)
      at += size
      this.first += size
      this.count -= size
      if (this.first === samples.length) {
        this.waiting.shift()
        this.first = 0
      }
    }
    return this.open
  }

  record(samples) {
    for (const value of samples) {
      this.block[this.filled++] = value
      if (this.filled === this.block.length) {
        this.port.postMessage(this.block.slice())
        this.filled = 0
      }
    }
  }
}

registerProcessor('slimse-live', Live)
