'use strict';
// Prints what must differ between instances that start from one snapshot: randomness of every kind, and clocks.

const crypto = require('node:crypto');

// Everything has been used before the snapshot: each generator has state that a careless clone would share.
const used = crypto.randomBytes(16).toString('hex');
Math.random();
crypto.randomUUID();
crypto.randomInt(1000);
globalThis.crypto.getRandomValues(new Uint8Array(16));
const started = { monotonic: performance.now(), wall: Date.now() / 1000 };

exports.handler = async () => ({
  unique: {
    math: Math.random(),
    randomBytes: crypto.randomBytes(16).toString('hex'),
    randomBytesAsync: await new Promise((resolve, reject) =>
      crypto.randomBytes(16, (error, bytes) => (error ? reject(error) : resolve(bytes.toString('hex'))))),
    randomUUID: crypto.randomUUID(),
    webRandomUUID: globalThis.crypto.randomUUID(),
    getRandomValues: Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(16))).toString('hex'),
    randomInt: crypto.randomInt(2 ** 47),
    key: crypto.generateKeySync('hmac', { length: 128 }).export().toString('hex'),
  },
  clocks: {
    monotonic_before_snapshot: started.monotonic / 1000,
    monotonic: performance.now() / 1000,
    wall_before_snapshot: started.wall,
    wall: Date.now() / 1000,
  },
  init_was_shared: used,
});
