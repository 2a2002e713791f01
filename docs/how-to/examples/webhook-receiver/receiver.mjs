// SPDX-License-Identifier: MPL-2.0

// A receiver of webhooks to start from, without dependencies: it checks the
// signature, tells repetitions apart, and answers before it works.
//
// It reads its secrets, one a line, from webhook-secret at each message, so
// that changing them takes no restart. It writes its address to receiver.url
// and each new message, as a line of JSON, to events.log.
import { createHmac, timingSafeEqual } from 'node:crypto'
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'

const maxBody = 1 << 20

// verify tells whether one of the secrets has signed the message, and lately.
function verify(secrets, headers, body, now = Date.now() / 1000) {
  const id = headers['webhook-id']
  const time = headers['webhook-timestamp']
  if (!id || !/^\d{1,12}$/.test(time ?? '') || Math.abs(now - Number(time)) > 300) return false
  const given = (headers['webhook-signature'] ?? '').split(' ').map((s) => Buffer.from(s))
  return secrets.some((secret) => {
    const key = Buffer.from(secret.replace(/^whsec_/, ''), 'base64')
    const mac = createHmac('sha256', key).update(`${id}.${time}.`).update(body).digest('base64')
    const want = Buffer.from('v1,' + mac)
    return given.some((got) => got.length === want.length && timingSafeEqual(got, want))
  })
}

// A real receiver remembers ids where a restart does not lose them, for as
// long as a message may be repeated: four days.
const seen = new Set()

function receive(headers, body) {
  let secrets
  try {
    secrets = readFileSync('webhook-secret', 'utf8').split('\n').filter(Boolean)
  } catch {
    return 503 // not ready: it is sent again
  }
  if (!verify(secrets, headers, body)) return 401
  if (seen.has(headers['webhook-id'])) return 204
  appendFileSync('events.log', body.toString() + '\n', { mode: 0o600 })
  seen.add(headers['webhook-id'])
  return 204
}

const server = createServer((req, res) => {
  const parts = []
  let size = 0
  req.on('data', (part) => {
    size += part.length
    if (size > maxBody) req.destroy()
    else parts.push(part)
  })
  req.on('end', () => {
    res.statusCode = receive(req.headers, Buffer.concat(parts))
    res.end()
  })
})
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
  writeFileSync('receiver.url', `http://127.0.0.1:${server.address().port}/\n`)
})
