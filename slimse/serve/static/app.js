// The page: what happens when something is chosen, moved or pressed.

import * as engine from './engine.js'
import { decibels, encodeWav, mono, openMicrophone, Player } from './sound.js'
import { drawSpectrogram, drawTrace, loudest, spectrogram } from './draw.js'

const $ = (id) => document.getElementById(id)
const RECORD_SECONDS = 60
const LIVE_SECONDS = 10

let about, context, sound, result, top, pending
export let player

function say(text) { $('status').textContent = text }

function complain(error) {
  $('error').textContent = error ? error.message || String(error) : ''
  $('error').hidden = !error
}

function audio() {
  // Browsers want to be asked for sound after a click, so not before.
  if (!context) {
    context = new AudioContext(engine.contextRate ? { sampleRate: engine.contextRate } : {})
    player = new Player(context, paint)
  }
  return context
}

function setting() {
  const chosen = about.settings[$('mode').value]
  return chosen.budget ? { budget: Number($('budget').value) } : { uf: chosen.uf }
}

// Sound --------------------------------------------------------------------------------------------------------------

async function open(name, bytes) {
  complain(null)
  try {
    audio()
    if (player.playing) player.pause()
    const buffer = await context.decodeAudioData(await bytes.slice().arrayBuffer()).catch(() => {
      throw new Error(`${name}: this browser cannot decode it. Try WAV, FLAC, MP3 or OGG.`)
    })
    if (!buffer.length) throw new Error(`${name}: holds no sound.`)
    const channels = () => Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i))
    sound = { name, bytes, buffer, wav: () => encodeWav(channels(), buffer.sampleRate) }
    result = null
    player.offset = 0
    player.buffers = { noisy: buffer }
    player.apply(0)
    $('listen').hidden = false
    $('title').textContent = name
    $('place').max = buffer.duration
    $('length').textContent = `${buffer.duration.toFixed(1)} s`
    drawNoisy(buffer.sampleRate)
    clear($('enhanced-picture'))
    clear($('trace'))
    $('numbers').replaceChildren()
    $('download').hidden = true
    paint()
    await enhance()
  } catch (error) {
    complain(error)
  }
}

function drawNoisy(rate) {
  // The browser plays at its own rate; above that of the file there is nothing to see.
  const picture = spectrogram(mono(sound.buffer), sound.buffer.sampleRate, rate / 2)
  top = loudest(picture)
  drawSpectrogram($('noisy-picture'), picture, top)
  $('band').textContent = `0 to ${Number((rate / 2000).toFixed(1))} kHz`
}

function clear(canvas) { canvas.width = canvas.width }

async function enhance() {
  if (!sound) return
  pending?.abort()
  const mine = pending = new AbortController()
  say('Enhancing …')
  try {
    const found = await engine.enhance(sound, setting(), mine.signal, (share) => say(`Enhancing … ${Math.round(100 * share)} %`))
    const buffer = await context.decodeAudioData(await found.wav.arrayBuffer())
    if (mine.signal.aborted) return
    result = found
    complain(null)
    player.put('enhanced', buffer)
    show(buffer)
  } catch (error) {
    if (mine.signal.aborted) return
    say('')
    complain(error)
  }
}

let timer
function changed() {
  label()
  running?.session.set(setting())
  clearTimeout(timer)
  timer = setTimeout(enhance, 250)
}

// What is seen ---------------------------------------------------------------------------------------------------------

function label() {
  const chosen = about.settings[$('mode').value]
  $('budget-row').hidden = !chosen.budget
  $('budget-value').textContent = Number($('budget').value).toFixed(3)
  $('budget').setAttribute('aria-valuetext', `average UF ${$('budget').value}`)
  $('mode-hint').textContent = chosen.budget
    ? 'The budget is an average UF over much sound. One clip may use more or less.'
    : `${Math.round(100 * chosen.uf)} % of the channels run in every frame.`
}

function show(buffer) {
  drawNoisy(result.sample_rate)
  drawSpectrogram($('enhanced-picture'), spectrogram(mono(buffer), buffer.sampleRate, result.sample_rate / 2), top)
  drawTrace($('trace'), result.ufs, about.ufs)
  const shares = about.ufs.map((uf) => `${uf}: ${Math.round(100 * result.ufs.filter((found) => Math.abs(found - uf) < 1e-3).length / result.ufs.length)} %`)
  $('trace').setAttribute('aria-label', `UF of every frame. Share of frames by UF: ${shares.join(', ')}`)
  const level = (value) => (value === null ? 'silence' : `${value.toFixed(1)} dBFS`)
  const numbers = {
    'Average UF': result.uf.toFixed(3),
    'MACs per sample': Math.round(result.macs_per_sample).toLocaleString('en'),
    'Of UF 1': `${Math.round(100 * result.share)} %`,
    'Enhancing took': `${result.took.toFixed(2)} s`,
    'Speed': `${(1 / result.real_time_factor).toFixed(1)} × real time`,
    'Level, noisy': level(result.level),
    'Level, enhanced': level(result.enhanced_level),
    'Sound': `${result.seconds.toFixed(1)} s, ${result.sample_rate / 1000} kHz, ${result.channels === 1 ? 'mono' : `${result.channels} channels`}`,
  }
  $('numbers').replaceChildren(...Object.entries(numbers).map(([name, value]) => {
    const box = document.createElement('div'), term = document.createElement('dt'), text = document.createElement('dd')
    term.textContent = name
    text.textContent = value
    box.append(term, text)
    return box
  }))
  const link = $('download')
  if (link.href) URL.revokeObjectURL(link.href)
  link.href = URL.createObjectURL(result.wav)
  link.download = `${sound.name.replace(/\.[^.]*$/, '')}.enhanced.wav`
  link.hidden = false
  say(`Enhanced: average UF ${result.uf.toFixed(2)}.`)
}

function paint() {
  const place = player.position, share = player.duration ? place / player.duration : 0
  if (document.activeElement !== $('place') || player.playing) $('place').value = place
  $('place').setAttribute('aria-valuetext', `${place.toFixed(1)} of ${player.duration.toFixed(1)} seconds`)
  $('time').textContent = `${place.toFixed(1)} s`
  $('play').textContent = player.playing ? 'Pause' : 'Play'
  for (const cursor of document.querySelectorAll('.cursor')) cursor.style.left = `${100 * share}%`
  if (player.playing) requestAnimationFrame(paint)
}

// Microphone -------------------------------------------------------------------------------------------------------------

let recording
async function record() {
  if (recording) {
    finishRecording()
    return
  }
  complain(null)
  const blocks = []
  let count = 0
  const rate = audio().sampleRate
  try {
    recording = {}
    const microphone = await openMicrophone(context, (block) => {
      blocks.push(block)
      count += block.length
      $('recorded').textContent = `${(count / rate).toFixed(1)} s`
      if (count >= RECORD_SECONDS * rate) finishRecording()
    })
    recording = { microphone, blocks, rate }
    press($('record'), true, 'Stop')
  } catch (error) {
    recording = null
    complain(error)
  }
}

function finishRecording() {
  if (!recording?.microphone) return
  const { microphone, blocks, rate } = recording
  recording = null
  microphone.close()
  press($('record'), false, 'Record')
  $('recorded').textContent = ''
  const samples = new Float32Array(blocks.reduce((sum, block) => sum + block.length, 0))
  let at = 0
  for (const block of blocks) {
    samples.set(block, at)
    at += block.length
  }
  if (samples.length) open('recording.wav', encodeWav([samples], rate))
}

function press(button, down, text) {
  button.setAttribute('aria-pressed', down)
  button.textContent = text
}

let running
async function startLive() {
  if (running) {
    stopLive('')
    return
  }
  complain(null)
  const own = running = { session: { set() {}, close() {} }, frames: [], load: 0, delay: 0, level: -60 }
  press($('live'), true, 'Stop')
  $('live-status').textContent = 'Opening the microphone …'
  try {
    const rate = audio().sampleRate
    own.microphone = await openMicrophone(context, (block) => {
      own.level = Math.max(own.level - 0.5, decibels(block) ?? -60)
      own.session.send?.(block)
    })
    if (running !== own) {
      own.microphone.close()
      return
    }
    const enabled = $('live-heard').value !== 'noisy'
    own.session = engine.live(rate, { ...setting(), enabled }, {
      block: (samples) => {
        if ($('live-heard').value === 'nothing') samples.fill(0)
        own.microphone.play(samples)
      },
      report: (message) => {
        own.delay = message.delay_ms ?? own.delay
        own.load = message.load ?? own.load
        own.frames.push(...(message.frames ?? []))
        own.frames.splice(0, own.frames.length - Math.round(1000 * LIVE_SECONDS / about.frame_ms))
        paintLive(own)
      },
      closed: (reason) => { if (running === own) stopLive(reason) },
    })
    $('live-meters').hidden = false
  } catch (error) {
    if (running === own) stopLive('')
    complain(error)
  }
}

function stopLive(reason) {
  running.session.close()
  running.microphone?.close()
  running = null
  press($('live'), false, 'Start')
  $('live-status').textContent = reason
}

function paintLive(own) {
  const frame = own.frames[own.frames.length - 1]
  $('live-level').value = own.level
  $('live-level-value').textContent = `${own.level.toFixed(0)} dBFS`
  if (!frame) return
  const most = Math.round(1000 * LIVE_SECONDS / about.frame_ms)
  const average = own.frames.reduce((sum, [uf]) => sum + uf, 0) / own.frames.length
  $('live-speech-row').hidden = frame[1] === null
  $('live-speech').value = frame[1] ?? 0
  $('live-speech-value').textContent = `${Math.round(100 * frame[1])} %`
  drawTrace($('live-trace'), own.frames.map(([uf]) => uf), about.ufs, most)
  $('live-status').textContent = `Average UF ${average.toFixed(2)}, noise ${frame[2].toFixed(0)} dBFS, ` +
    `${Math.round(100 * own.load)} % of a processor core, delay ${own.delay.toFixed(0)} ms besides that of your devices.`
}

// Start --------------------------------------------------------------------------------------------------------------------

function listen() {
  $('file').addEventListener('change', ({ target }) => { if (target.files[0]) open(target.files[0].name, target.files[0]) })
  const drop = $('drop')
  for (const name of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(name, (event) => {
      event.preventDefault()
      drop.classList.toggle('over', name === 'dragover')
    })
  }
  document.addEventListener('drop', ({ dataTransfer }) => {
    const file = dataTransfer.files[0]
    if (file) open(file.name, file)
  })
  $('example').addEventListener('click', async () => {
    audio()
    try {
      open('noisy.flac', await (await fetch('static/noisy.flac')).blob())
    } catch (error) {
      complain(error)
    }
  })
  $('record').addEventListener('click', record)
  $('live').addEventListener('click', startLive)
  $('live-heard').addEventListener('change', () => running?.session.set({ enabled: $('live-heard').value !== 'noisy' }))
  $('mode').addEventListener('change', changed)
  $('budget').addEventListener('input', changed)
  $('play').addEventListener('click', async () => {
    if (player.playing) player.pause()
    else await player.play()
    paint()
  })
  $('switch').addEventListener('change', ({ target }) => player.choose(target.value))
  $('place').addEventListener('input', ({ target }) => { player.seek(Number(target.value)); paint() })
  for (const picture of document.querySelectorAll('#listen .picture')) {
    picture.addEventListener('click', (event) => {
      const box = picture.getBoundingClientRect()
      player.seek(player.duration * (event.clientX - box.left) / box.width)
      paint()
    })
  }
  addEventListener('resize', () => { if (result) drawTrace($('trace'), result.ufs, about.ufs) })
}

async function start() {
  try {
    about = await engine.about()
    $('about').textContent = `Speech enhancement with input-adaptive compute. ${about.text}`
    $('privacy').textContent = engine.privacy
    $('mode').replaceChildren(...about.settings.map(({ label }, index) => new Option(label, index)))
    $('budget').min = about.ufs[0]
    $('budget').max = 1
    $('budget').value = 0.25
    label()
    listen()
    document.body.dataset.ready = 'yes'
  } catch (error) {
    complain(error)
  }
}

start()
