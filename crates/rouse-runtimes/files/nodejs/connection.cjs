'use strict';
// One keep-alive HTTP/1.1 connection to the Lambda Runtime API. Written on `net`, because a restored instance runs this
// first: what is not touched need not be faulted in.

const net = require('node:net');

class Connection {
  constructor(api) {
    const colon = api.lastIndexOf(':');
    this.address = { host: api.slice(0, colon), port: Number(api.slice(colon + 1)), noDelay: true };
    this.host = `Host: ${api}\r\n`;
    this.data = null;
    this.pending = null;
    this.connect();
  }

  connect() {
    const socket = net.connect(this.address);
    this.socket = socket;
    this.data = null;
    socket.on('data', (chunk) => this.receive(chunk));
    socket.on('error', () => {});
    socket.on('close', () => { if (socket === this.socket) this.lost(); });
  }

  // A connection that the other end has closed in the meantime is opened again, once for each request.
  lost() {
    this.connect();
    const { pending } = this;
    if (pending === null) {
      this.socket.unref();
    } else if (pending.repeated) {
      this.pending = null;
      pending.reject(new Error('the runtime API closed the connection'));
    } else {
      pending.repeated = true;
      this.socket.write(pending.bytes);
    }
  }

  receive(chunk) {
    this.data = this.data === null ? chunk : Buffer.concat([this.data, chunk]);
    const reply = parse(this.data);
    if (reply === null || this.pending === null) return;
    const { pending } = this;
    this.data = this.pending = null;
    pending.resolve(reply);
  }

  send(bytes) {
    return new Promise((resolve, reject) => {
      this.pending = { bytes, resolve, reject, repeated: false };
      this.socket.write(bytes);
    });
  }

  get(path, extra = '') {
    return this.send(Buffer.from(`GET /2018-06-01/runtime/${path} HTTP/1.1\r\n${this.host}${extra}\r\n`, 'latin1'));
  }

  post(path, body, contentType = 'application/json', extra = '') {
    const content = Buffer.isBuffer(body) ? body : Buffer.from(body, 'utf8');
    const head = `POST /2018-06-01/runtime/${path} HTTP/1.1\r\n${this.host}Content-Type: ${contentType}\r\n${extra}` +
      `Content-Length: ${content.length}\r\n\r\n`;
    return this.send(Buffer.concat([Buffer.from(head, 'latin1'), content]));
  }

  // While a handler runs, the connection must not keep the event loop alive: a loop that runs empty ends the invocation.
  ref() { this.socket.ref(); }
  unref() { this.socket.unref(); }
}

// The reply at the start of `data`, or null while it is incomplete.
function parse(data) {
  const end = data.indexOf('\r\n\r\n');
  if (end < 0) return null;
  const lines = data.latin1Slice(0, end).split('\r\n');
  const headers = { __proto__: null };
  for (let i = 1; i < lines.length; i++) {
    const colon = lines[i].indexOf(':');
    headers[lines[i].slice(0, colon).toLowerCase()] = lines[i].slice(colon + 1).trim();
  }
  const status = Number(lines[0].slice(9, 12));
  const start = end + 4;
  if (headers['transfer-encoding'] === 'chunked') {
    const body = parseChunks(data, start);
    return body === null ? null : { status, headers, body };
  }
  const length = Number(headers['content-length'] ?? 0);
  if (data.length < start + length) return null;
  return { status, headers, body: data.subarray(start, start + length) };
}

function parseChunks(data, start) {
  const parts = [];
  for (let at = start; ;) {
    const end = data.indexOf('\r\n', at);
    if (end < 0) return null;
    const size = parseInt(data.latin1Slice(at, end), 16);
    if (size === 0) return data.indexOf('\r\n\r\n', end - 2) < 0 && data.indexOf('\r\n', end + 2) < 0 ? null : Buffer.concat(parts);
    if (data.length < end + 2 + size + 2) return null;
    parts.push(data.subarray(end + 2, end + 2 + size));
    at = end + 2 + size + 2;
  }
}

module.exports = { Connection, parse };
