'use strict';
// Hooks around the snapshot. Functions reach them as `require('rouse-snapshot')` or, also from ES modules, as
// `globalThis[Symbol.for('rouse.snapshot')]`.
//
// Hooks before the snapshot run from the last registered to the first, hooks after a restore in the order of registration;
// promises are awaited.

const before = [];
const after = [];

function register(list, hook, args) {
  if (typeof hook !== 'function') throw new TypeError('a snapshot hook must be a function');
  list.push([hook, args]);
  return hook;
}

globalThis[Symbol.for('rouse.snapshot')] = Object.freeze({
  registerBeforeSnapshot: (hook, ...args) => register(before, hook, args),
  registerAfterRestore: (hook, ...args) => register(after, hook, args),
});

async function runBefore() {
  while (before.length > 0) {
    const [hook, args] = before.pop();
    await hook(...args);
  }
}

async function runAfter() {
  for (const [hook, args] of after) await hook(...args);
}

module.exports = { runBefore, runAfter };
