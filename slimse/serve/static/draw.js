// Spectrograms and the UF of every frame.

const COLOURS = [[0, 0, 4], [60, 15, 112], [143, 41, 129], [222, 73, 104], [254, 159, 109], [252, 253, 191]]
const RANGE = 60 // dB

function transform(re, im) {
  // Fast Fourier transform in place; the length is a power of 2.
  const n = re.length
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1
    for (; j & bit; bit >>= 1) j ^= bit
    j ^= bit
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]]
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    const half = size / 2
    for (let k = 0; k < half; k++) {
      const c = Math.cos(2 * Math.PI * k / size), s = -Math.sin(2 * Math.PI * k / size)
      for (let a = k; a < n; a += size) {
        const b = a + half
        const x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c
        re[b] = re[a] - x; im[b] = im[a] - y
        re[a] += x; im[a] += y
      }
    }
  }
}

export function spectrogram(samples, rate, highest = rate / 2, most = 600) {
  // Levels in dB up to `highest` Hz, column by column; windows of about 32 ms.
  const size = 2 ** Math.round(Math.log2(0.032 * rate)), bins = Math.round(size * Math.min(highest / rate, 0.5))
  const hop = Math.max(size / 4, Math.ceil(samples.length / most))
  const columns = Math.max(1, Math.ceil(samples.length / hop))
  const window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos(2 * Math.PI * i / size))
  const levels = new Float32Array(columns * bins)
  const re = new Float32Array(size), im = new Float32Array(size)
  for (let column = 0; column < columns; column++) {
    const start = column * hop - size / 2
    for (let i = 0; i < size; i++) {
      re[i] = (samples[start + i] || 0) * window[i]
      im[i] = 0
    }
    transform(re, im)
    for (let k = 0; k < bins; k++) {
      levels[column * bins + k] = 20 * Math.log10(Math.hypot(re[k], im[k]) * 4 / size + 1e-9)
    }
  }
  return { levels, columns, bins }
}

export function loudest({ levels }) {
  // Level that a thousandth lies above: both pictures share it, or they could not be compared.
  const sorted = Float32Array.from(levels).sort()
  return 5 * Math.ceil(sorted[Math.floor(0.999 * (sorted.length - 1))] / 5)
}

export function drawSpectrogram(canvas, { levels, columns, bins }, top) {
  canvas.width = columns
  canvas.height = bins
  const pen = canvas.getContext('2d'), picture = pen.createImageData(columns, bins)
  for (let column = 0; column < columns; column++) {
    for (let k = 0; k < bins; k++) {
      const share = Math.min(1, Math.max(0, (levels[column * bins + k] - top + RANGE) / RANGE))
      const place = share * (COLOURS.length - 1), index = Math.min(COLOURS.length - 2, Math.floor(place))
      const at = 4 * ((bins - 1 - k) * columns + column)
      for (let c = 0; c < 3; c++) {
        const low = COLOURS[index][c]
        picture.data[at + c] = low + (place - index) * (COLOURS[index + 1][c] - low)
      }
      picture.data[at + 3] = 255
    }
  }
  pen.putImageData(picture, 0, 0)
}

export function drawTrace(canvas, chosen, ufs, frames = chosen.length) {
  // Steps from the smallest UF, below, to the largest, in octaves; `frames` is the width of the picture.
  const scale = window.devicePixelRatio || 1
  const width = canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale))
  const height = canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale))
  const pen = canvas.getContext('2d'), style = getComputedStyle(canvas)
  const octaves = Math.log2(ufs[ufs.length - 1] / ufs[0]) || 1
  const y = (uf) => height * (0.88 - 0.76 * Math.log2(uf / ufs[0]) / octaves)
  const [text, ground, accent] = [style.color, style.backgroundColor, style.outlineColor]
  pen.font = `${11 * scale}px system-ui, sans-serif`
  pen.textBaseline = 'middle'
  for (const uf of ufs) {
    pen.strokeStyle = text
    pen.globalAlpha = 0.25
    pen.beginPath(); pen.moveTo(0, y(uf)); pen.lineTo(width, y(uf)); pen.stroke()
  }
  pen.globalAlpha = 1
  pen.strokeStyle = accent
  pen.lineWidth = 1.5 * scale
  pen.beginPath()
  chosen.forEach((uf, i) => {
    pen.lineTo(width * i / frames, y(uf))
    pen.lineTo(width * (i + 1) / frames, y(uf))
  })
  pen.stroke()
  for (const uf of [ufs[0], ufs[ufs.length - 1]]) {
    const label = `${uf}`
    pen.globalAlpha = 0.8
    pen.fillStyle = ground
    pen.fillRect(0, y(uf) - 7 * scale, pen.measureText(label).width + 6 * scale, 14 * scale)
    pen.globalAlpha = 1
    pen.fillStyle = text
    pen.fillText(label, 3 * scale, y(uf))
  }
}
