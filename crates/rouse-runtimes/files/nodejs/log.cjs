'use strict';
// `console` as under Lambda: one line for each call, `time\trequest id\tLEVEL\tmessage`, written before the call returns.

const fs = require('node:fs');
const { format } = require('node:util');

const state = { requestId: undefined };

function write(fd, text) {
  let bytes = Buffer.from(text, 'utf8');
  while (bytes.length > 0) {
    try {
      bytes = bytes.subarray(fs.writeSync(fd, bytes));
    } catch (error) {
      // The pipe is full and `process.stdout` has made it non-blocking: wait a little for its reader.
      if (error.code !== 'EAGAIN') return;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

function log(level, text) {
  write(1, `${new Date().toISOString()}\t${state.requestId}\t${level}\t${text.replace(/\n/g, '\r')}\n`);
}

function patchConsole() {
  for (const [method, level] of Object.entries({ log: 'INFO', info: 'INFO', debug: 'DEBUG', warn: 'WARN', error: 'ERROR', trace: 'TRACE' })) {
    console[method] = (...args) => log(level, format(...args));
  }
}

// Lambda's JSON shape of an error.
function describe(error) {
  if (error instanceof Error || (error !== null && typeof error === 'object' && 'message' in error && 'stack' in error)) {
    return { errorType: error.name, errorMessage: String(error.message), trace: String(error.stack ?? '').split('\n') };
  }
  return { errorType: typeof error, errorMessage: String(error), trace: [] };
}

function logError(kind, report) {
  log('ERROR', `${kind} \t${JSON.stringify({ ...report, trace: undefined, stack: report.trace })}`);
}

module.exports = { state, patchConsole, describe, logError };
