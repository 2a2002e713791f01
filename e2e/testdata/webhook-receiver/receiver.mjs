// SPDX-License-Identifier: MPL-2.0

// A receiver of webhooks that verifies with the package standardwebhooks.
//
//   node receiver.mjs PORT SECRET [SECRET...]
//
// It accepts a message that one of the secrets has signed. What it does with
// messages is set by POST /behave: {"status": 500} answers so, {"slow": true}
// does not answer, {} is back to normal. It prints a line of JSON for its
// port and one for each request.
import { createServer } from 'node:http'
import { Webhook } from 'standardwebhooks'

const [port, ...secrets] = process.argv.slice(2)
let behave = {}

const say = (line) => process.stdout.write(JSON.stringify(line) + '\n')

// signedBy lists the secrets, by their place, that have signed the message.
function signedBy(headers, body) {
  return secrets.flatMap((secret, i) => {
    try {
      new Webhook(secret).verify(body, headers)
      return [i]
    } catch {
      return []
    }
  })
}

function receive(headers, body) {
  const by = signedBy(headers, body)
  if (by.length === 0) {
    say({ id: headers['webhook-id'], refused: true })
    return 401
  }
  const status = behave.status ?? 204
  const signatures = headers['webhook-signature'].split(' ').length
  say({ id: headers['webhook-id'], signed_by: by, signatures, accepted: status < 300 && !behave.slow, ...JSON.parse(body) })
  return status
}

createServer((req, res) => {
  let body = ''
  req.setEncoding('utf8')
  req.on('data', (part) => (body += part))
  req.on('end', () => {
    if (req.url === '/behave') {
      behave = JSON.parse(body)
      res.statusCode = 204
      res.end()
      return
    }
    res.statusCode = receive(req.headers, body)
    if (!behave.slow) res.end()
  })
}).listen(Number(port), '127.0.0.1', function () {
  say({ port: this.address().port })
})
