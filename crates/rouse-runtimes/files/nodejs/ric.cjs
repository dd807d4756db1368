'use strict';
// Starts the `aws-lambda-ric` of a function's package:  node ric.cjs HANDLER
//
// That client has no snapshot hooks: its snapshot is taken while its first `invocation/next` is parked. Its native module is
// the one place that sees the first event arrive, so it is wrapped: generators are reseeded before the handler hears of it.

const path = require('node:path');
const { pathToFileURL } = require('node:url');
const unique = require('./unique.cjs');
const hooks = require('./hooks.cjs');

const root = process.env.LAMBDA_TASK_ROOT ?? '/var/task';

const { dlopen } = process;
process.dlopen = function (module, filename, ...flags) {
  dlopen.call(this, module, filename, ...flags);
  if (path.basename(filename) !== 'rapid-client.node') return;
  process.dlopen = dlopen;
  const { next } = module.exports;
  let restored = false;
  module.exports = {
    ...module.exports,
    async next(...args) {
      if (!restored) await hooks.runBefore();
      const event = await next.apply(this, args);
      if (!restored) {
        restored = true;
        unique.reseed();
        await hooks.runAfter();
      }
      return event;
    },
  };
};

async function main() {
  const folder = path.join(root, 'node_modules', 'aws-lambda-ric');
  const { bin, main: entry } = require(path.join(folder, 'package.json'));
  const script = typeof bin === 'string' ? bin : Object.values(bin ?? {})[0] ?? entry;
  process.argv.splice(1, 1, path.join(folder, script));
  await import(pathToFileURL(process.argv[1]).href);
}

main();
