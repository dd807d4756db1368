'use strict';
// What must differ between instances that start from one snapshot. Loaded before any code of the function.
//
//   Math.random         V8 keeps its state where it cannot be reached, so it is replaced by a generator of ours (xoshiro128**).
//   crypto.randomUUID   fills a cache of 128 values ahead: asked without it.
//   crypto.randomInt    fills a cache of 6 KiB ahead: drawn from randomBytes' source instead.
//   OpenSSL             notices a new process by its pid, which is the same in every instance: told by RAND_poll.
//
// `reseed` is called in every instance before the function runs.

const crypto = require('node:crypto');
const { syncBuiltinESMExports } = require('node:module');

const state = new Uint32Array(4);

function seed() {
  // An all-zero state would only ever yield zeros.
  do crypto.randomFillSync(state); while ((state[0] | state[1] | state[2] | state[3]) === 0);
}

function next() {
  const scrambled = Math.imul(state[1], 5);
  const result = Math.imul((scrambled << 7) | (scrambled >>> 25), 9);
  const shifted = state[1] << 9;
  state[2] ^= state[0];
  state[3] ^= state[1];
  state[1] ^= state[2];
  state[0] ^= state[3];
  state[2] ^= shifted;
  state[3] = (state[3] << 11) | (state[3] >>> 21);
  return result >>> 0;
}

function random() {
  // 53 random bits, as many as a double holds.
  return ((next() >>> 5) * 0x4000000 + (next() >>> 6)) / 0x20000000000000;
}

function replaceMathRandom() {
  seed();
  Object.defineProperty(Math, 'random', { value: random, writable: true, configurable: true, enumerable: false });
}

function replaceRandomUUID() {
  const { randomUUID } = crypto;
  const fresh = { __proto__: null, disableEntropyCache: true };
  crypto.randomUUID = function (options) {
    // Without options or with an object the cache is left out; anything else gets the original's complaint.
    return options === undefined || (options !== null && typeof options === 'object') ? randomUUID(fresh) : randomUUID(options);
  };
  const prototype = crypto.webcrypto && Object.getPrototypeOf(crypto.webcrypto);
  if (prototype && Object.prototype.hasOwnProperty.call(prototype, 'randomUUID')) {
    Object.defineProperty(prototype, 'randomUUID', {
      ...Object.getOwnPropertyDescriptor(prototype, 'randomUUID'),
      value: function () { return randomUUID(fresh); },
    });
  }
}

function replaceRandomInt() {
  const { randomInt } = crypto;
  const LIMIT = 2 ** 48;
  const bytes = Buffer.alloc(6);
  crypto.randomInt = function (min, max, callback) {
    let low = min, high = max, done = callback;
    if (max === undefined || typeof max === 'function') [low, high, done] = [0, min, max];
    const valid = Number.isSafeInteger(low) && Number.isSafeInteger(high) && high > low && high - low < LIMIT &&
      (done === undefined || typeof done === 'function');
    if (!valid) return randomInt(min, max, callback);
    const range = high - low;
    const end = LIMIT - (LIMIT % range);
    let value;
    do value = crypto.randomFillSync(bytes).readUIntBE(0, 6); while (value >= end);
    value = low + (value % range);
    if (done === undefined) return value;
    process.nextTick(done, null, value);
  };
}

// The native module has one function, which calls OpenSSL's RAND_poll.
let poll = null;
try {
  poll = require('./reseed.node');
} catch (error) {
  console.error(`rouse: crypto.randomBytes cannot be reseeded after a restore, because this node does not export what reseed.node needs: ${error.message}`);
}

function reseed() {
  // First OpenSSL: everything else is drawn from it.
  if (poll !== null && poll() !== 1) throw new Error('OpenSSL could not be reseeded (RAND_poll)');
  seed();
}

replaceMathRandom();
replaceRandomUUID();
replaceRandomInt();
syncBuiltinESMExports();

module.exports = { reseed };
