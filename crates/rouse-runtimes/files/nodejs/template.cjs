'use strict';
// Node as a language template: node's own modules that functions often require are loaded, no function is.
//
//   node bootstrap.cjs                 (no handler, and ROUSE_TEMPLATE=1)
//
// A snapshot is taken while `template/next` is parked. Each copy is answered with what makes it a function: its environment
// and its handler. What the function then sees is what it would see after a cold start. A page that it does not write is
// shared with all others.

const fs = require('node:fs');
const path = require('node:path');
const unique = require('./unique.cjs');
const { load } = require('./handler.cjs');

// None of these draws random numbers, reads the environment or looks at the machine when it is loaded. (`assert` does: it opens
// standard error.)
const PRELOADED = [
  'async_hooks', 'buffer', 'child_process', 'crypto', 'events', 'fs/promises', 'http', 'https', 'os', 'path', 'perf_hooks',
  'querystring', 'stream', 'stream/promises', 'string_decoder', 'timers/promises', 'tls', 'url', 'util', 'zlib',
];

// Loads, parks, and returns the function's handler in each copy. `rehearse` does what is done before a snapshot.
async function become(connection, rehearse) {
  for (const name of PRELOADED) require(`node:${name}`);
  await rehearseLoading();
  await rehearse();
  forget();
  const reply = await connection.get('template/next');
  if (reply.status !== 200) throw new Error(`the runtime API answered /template/next with ${reply.status}: ${reply.body}`);
  const { environment, handler } = JSON.parse(reply.body.toString('utf8'));
  for (const name of Object.keys(process.env)) delete process.env[name];
  for (const [name, value] of environment) process.env[name] = value;
  // In a machine the package has been mounted since: this process stands below it.
  process.chdir(process.env.LAMBDA_TASK_ROOT ?? '/var/task');
  // What init draws must not be what another function's init draws.
  unique.reseed();
  return handler;
}

// Loads a handler of each kind: V8 compiles a function when it is first called, and what has been compiled here is shared.
// The package.json keeps node from looking, and remembering that it found nothing, further up.
async function rehearseLoading() {
  const folder = '/tmp/.rouse-rehearsal';
  const files = {
    'package.json': '{}',
    'part.js': 'exports.value = 1;',
    'first.js': "const { value } = require('./part'); exports.handler = async () => value;",
    'second.mjs': "import { value } from './part.js'; export const handler = async () => value;",
  };
  fs.mkdirSync(folder);
  try {
    for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(folder, name), text);
    for (const name of ['first.handler', 'second.handler']) await (await load(folder, name))();
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
}

// What a cold start would not have in `require.cache` and in `module.children`.
function forget() {
  const kept = (name) => name.startsWith(__dirname) && name !== __filename;
  for (const [name, loaded] of Object.entries(require.cache)) {
    loaded.children = loaded.children.filter((child) => kept(child.filename));
    if (!kept(name)) delete require.cache[name];
  }
}

module.exports = { become };
