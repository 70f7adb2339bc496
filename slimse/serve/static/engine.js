// What enhances: the server. A page without one brings another file of this name, with the same four exports.

export const contextRate = undefined // the device's own

export const privacy = 'Your sound goes to the server that shows this page, which keeps nothing of it.'

export async function about() {
  const found = await (await fetch('api/about')).json()
  const fixed = found.ufs.map((uf) => ({ label: `UF ${uf}`, uf }))
  const settings = found.router ? [{ label: 'the router chooses', budget: true }, ...fixed] : fixed
  const text = `Weights ${found.name}, latency ${found.latency_ms.toFixed(1)} ms. ` +
    `Files up to ${found.megabytes} MB and ${found.seconds} s.`
  return { ...found, settings, text }
}

export async function enhance(sound, setting, signal) {
  // `sound` has `bytes` (of a file) and `wav()`, for formats that the browser knows and the server does not.
  let response = await send(sound.bytes, setting, signal)
  if (response.status === 422) response = await send(sound.wav(), setting, signal)
  if (!response.ok) throw new Error(await reason(response))
  const form = await response.formData()
  return { ...JSON.parse(form.get('report')), wav: form.get('sound') }
}

function send(body, setting, signal) {
  return fetch(`api/enhance?${new URLSearchParams(setting)}`, { method: 'POST', body, signal })
}

async function reason(response) {
  const text = await response.text()
  try {
    return JSON.parse(text).detail
  } catch {
    return text || `${response.status} ${response.statusText}`
  }
}

export function live(rate, setting, { block, report, closed }) {
  const address = new URL('api/live', location.href)
  address.protocol = address.protocol.replace('http', 'ws')
  const socket = new WebSocket(address)
  socket.binaryType = 'arraybuffer'
  let underway = 0
  const open = () => socket.readyState === WebSocket.OPEN
  socket.onopen = () => socket.send(JSON.stringify({ rate, ...setting }))
  socket.onmessage = ({ data }) => {
    if (typeof data === 'string') report(JSON.parse(data))
    else {
      underway -= data.byteLength / 4
      block(new Float32Array(data))
    }
  }
  socket.onclose = ({ reason, code }) => closed(reason || (code === 1000 ? '' : 'The server ended the connection.'))
  return {
    send(samples) {
      // Sound that has to wait for half a second would only be late.
      if (!open() || underway > rate / 2) return
      underway += samples.length
      socket.send(samples)
    },
    set: (changes) => { if (open()) socket.send(JSON.stringify(changes)) },
    close: () => { socket.onclose = null; socket.close() },
  }
}
