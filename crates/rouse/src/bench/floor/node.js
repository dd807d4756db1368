// The floor of a Node function: as python.py, with fork from an addon.
// Started as `node -e THIS -- ADDON MODULE FUNCTION`, with the function's directory as its working directory.
//
// A fork has only the thread that called it. So Node runs with `--single-threaded --v8-pool-size=0`, where V8 needs
// no other thread, and the child ends as soon as the handler's promise is settled, before the event loop would turn.
'use strict';
const fs = require('node:fs');
const path = require('node:path');
const [addon, moduleName, functionName] = process.argv.slice(1);
const os = { exports: {} };
process.dlopen(os, addon);
const { prepare, fork, getpid, wait, exit } = os.exports;
const handler = require(path.join(process.cwd(), moduleName))[functionName];
const MEASURE = 1;
const buffer = Buffer.alloc(65536);

async function child(mode, length) {
  const answer = Buffer.from(JSON.stringify(await handler(JSON.parse(buffer.toString('utf8', 5, 5 + length)), {})));
  const head = Buffer.alloc(8);
  head.writeUInt32LE(getpid(), 0);
  head.writeUInt32LE(answer.length, 4);
  fs.writeSync(1, Buffer.concat([head, answer]));
  if (mode === MEASURE) fs.readSync(0, buffer, 0, 1, null);
  exit();
}

async function main() {
  await handler({ n: 0 }, {});
  prepare();
  fs.writeSync(1, 'ready');
  for (let forks = 1; ; forks++) {
    let have = 0;
    while (have < 5 || have < 5 + buffer.readUInt32LE(0)) {
      const got = fs.readSync(0, buffer, have, buffer.length - have, null);
      if (got === 0) process.exit(0);
      have += got;
    }
    const mode = buffer[4];
    if (fork() === 0) return child(mode, buffer.readUInt32LE(0));
    if (mode === MEASURE) wait();
    // The parent's heap grows slowly; what was added must be inherited, too.
    if (forks % 64 === 0) prepare();
  }
}

main();
