'use strict';
// rouse's runtime client for Node functions:  node bootstrap.cjs HANDLER
//
// Imports the handler, then answers invocations from the Lambda Runtime API (2018-06-01), with SnapStart's `restore/next`
// when AWS_LAMBDA_INITIALIZATION_TYPE is `snap-start`.

const unique = require('./unique.cjs');
const hooks = require('./hooks.cjs');
const log = require('./log.cjs');
const { Connection, parse } = require('./connection.cjs');
const { load } = require('./handler.cjs');

const env = process.env;
// Tells the node that it may send the next invocation as the reply to an answer, which saves a round trip. A node that does not
// know it replies as always, and `serve` asks for work.
const ACCEPT_NEXT = 'Rouse-Response-Accept: invocation\r\n';
// An answer is kept until its reply has come. A longer one, UTF-16 units, is not to be kept until there is more work.
const LARGEST_KEPT = 65536;
const errorHeader = (type) => `Lambda-Runtime-Function-Error-Type: ${type}\r\n`;

// --- One invocation ---

function makeContext(headers) {
  const deadline = Number(headers['lambda-runtime-deadline-ms'] ?? 0);
  const json = (name) => (headers[name] ? JSON.parse(Buffer.from(headers[name], 'latin1').toString('utf8')) : undefined);
  return {
    callbackWaitsForEmptyEventLoop: true,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    tenantId: headers['lambda-runtime-aws-tenant-id'],
    clientContext: json('lambda-runtime-client-context'),
    identity: json('lambda-runtime-cognito-identity'),
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
  };
}

// Called when the event loop has nothing left to wait for.
let onEmpty = null;
process.on('beforeExit', () => { if (onEmpty !== null) setImmediate(onEmpty); });

// The handler's result: from its promise, from its callback, or null when the event loop runs empty before either.
function call(handler, event, context) {
  return new Promise((resolve, reject) => {
    const done = (error, value) => {
      if (error !== undefined && error !== null) reject(error);
      else if (context.callbackWaitsForEmptyEventLoop) onEmpty = () => resolve(value);
      else resolve(value);
    };
    onEmpty = () => resolve(null);
    context.done = done;
    context.fail = (error) => done(error ?? 'handled');
    context.succeed = (value) => done(null, value);
    const result = handler(event, context, done);
    if (typeof result?.then === 'function') result.then(resolve, reject);
  }).finally(() => { onEmpty = null; });
}

// Runs the handler for one event. Returns [path, body, extra headers] of the request that reports the result.
async function handle(handler, { headers, body }) {
  const id = headers['lambda-runtime-aws-request-id'];
  log.state.requestId = id;
  const trace = headers['lambda-runtime-trace-id'];
  if (trace !== undefined) env._X_AMZN_TRACE_ID = trace;
  else if ('_X_AMZN_TRACE_ID' in env) delete env._X_AMZN_TRACE_ID;
  const echo = headers['lambda-runtime-invocation-id'];
  const extra = echo ? `Lambda-Runtime-Invocation-Id: ${echo}\r\n` : '';
  try {
    const result = await call(handler, JSON.parse(body.toString('utf8')), makeContext(headers));
    let text;
    try {
      // undefined has no JSON form; Lambda answers null.
      text = JSON.stringify(result) ?? 'null';
    } catch (error) {
      error.name = 'Runtime.MarshalError';
      error.message = `Unable to stringify response body: ${error.message}`;
      throw error;
    }
    return [`invocation/${id}/response`, text, extra];
  } catch (error) {
    const report = log.describe(error);
    log.logError('Invoke Error', report);
    return [`invocation/${id}/error`, JSON.stringify(report), extra + errorHeader(headerSafe(report.errorType))];
  }
}

const headerSafe = (type) => (/^[\w.]+$/.test(type) ? type : 'Function.Unknown');

async function serve(connection, handler, first) {
  for (let reply = first; ;) {
    reply ??= await connection.get('invocation/next');
    if (reply.status !== 200) throw new Error(`the runtime API answered /invocation/next with ${reply.status}: ${reply.body}`);
    if ('rouse-copied' in reply.headers) await renew(connection, reply.headers);
    connection.unref();
    const [path, body, extra] = await handle(handler, reply);
    connection.ref();
    log.state.requestId = undefined;
    const accept = body.length <= LARGEST_KEPT ? ACCEPT_NEXT : '';
    reply = await connection.post(path, body, 'application/json', extra + accept);
    if (reply.status >= 500) throw new Error(`the runtime API answered /${path} with ${reply.status}`);
    if (reply.status !== 200) reply = null;
  }
}

// --- Init and the snapshot ---

async function fail(connection, error, path, type, code) {
  const report = log.describe(error);
  log.logError('Uncaught Exception', report);
  connection.ref();
  try {
    await connection.post(path, JSON.stringify(report), 'application/json', errorHeader(type ?? headerSafe(report.errorType)));
  } finally {
    process.exit(code);
  }
}

// An error that nobody caught ends the process; what it is reported as depends on what was going on.
function watchUncaught(connection, current) {
  const report = (error, code) => {
    // A request may be on its way on the connection in use.
    const { path } = current();
    const separate = new Connection(env.AWS_LAMBDA_RUNTIME_API);
    fail(separate, error, path, null, code);
  };
  process.on('uncaughtException', (error) => report(error, 129));
  process.on('unhandledRejection', (reason) => {
    const { errorType, errorMessage } = log.describe(reason);
    const error = new Error(`${errorType}: ${errorMessage}`);
    error.name = 'Runtime.UnhandledPromiseRejection';
    if (reason?.stack) error.stack = reason.stack;
    report(error, 128);
  });
}

// V8's memory reducer collects garbage 8 seconds after a heap has first grown, or after a large one was collected. Time passes
// while a snapshot sleeps: in each copy of an older one the timer would have run out, and the first thing that it did would be to
// look at the whole heap and to move what is there, for nothing. So no such timer may be waiting in a snapshot. A small heap starts
// one before its first collection, unless told otherwise; a large one only if V8 can mark in steps.
function postponeMemoryReducer(on) {
  for (const flag of ['memory-reducer-for-small-heaps', 'incremental-marking']) setFlag(flag, !on);
}

// V8 does not use the bytecode that node brings for its own modules while any flag is another than usual.
function setFlag(name, on) {
  require('node:v8').setFlagsFromString(`--${on ? '' : 'no-'}${name}`);
}

function collectGarbage() {
  setFlag('expose-gc', true);
  const collect = require('node:vm').runInNewContext('gc');
  setFlag('expose-gc', false);
  collect();
}

// The handler of invocations that are not for the function.
const rehearse = async (value, context) => (context.getRemainingTimeInMillis(), value);

// Takes the path of an invocation before the snapshot, so that its bytecode is compiled once for all instances.
async function warmUp() {
  const event = '{"number":1.5,"text":"é","list":[1,null,true]}';
  const reply = Buffer.from('HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Deadline-Ms: 1542409706888\r\n' +
    `Lambda-Runtime-Aws-Request-Id: 8476a536-e9f4-11e8-9739-2dfe598c3fcd\r\nContent-Length: ${Buffer.byteLength(event)}\r\n\r\n${event}`);
  for (let i = 0; i < 16; i++) {
    await handle(rehearse, parse(reply));
  }
  log.state.requestId = undefined;
}

// Answers the events that the function is to have seen before its snapshot, if the node has any. They are part of init: the
// hooks around the snapshot come afterwards.
async function answerWarmUp(connection, handler) {
  for (;;) {
    const reply = await connection.get('warm-up/next');
    if (reply.status !== 200) break;
    connection.unref();
    const [path, body, extra] = await handle(handler, reply);
    connection.ref();
    await connection.post(path, body, 'application/json', extra);
    log.state.requestId = undefined;
  }
  delete env._X_AMZN_TRACE_ID;
}

// What makes the bytes of one snapshot useful to many copies.
async function settle() {
  await warmUp();
  collectGarbage();
}

// Returns the reply to `restore/next` when it carries an invocation already, else null.
async function snapshot(connection, handler) {
  await answerWarmUp(connection, handler);
  try {
    await hooks.runBefore();
    await settle();
    postponeMemoryReducer(false);
  } catch (error) {
    await fail(connection, error, 'init/error', 'Runtime.BeforeSnapshotError', 64);
  }
  // The header tells the node that it may send the invocation with this reply, which saves the first round trip of a restored
  // instance. A node that does not know it answers with an empty body, and `serve` asks for work.
  const reply = await connection.get('restore/next', 'Rouse-Restore-Accept: invocation, rehearsal\r\n');
  if (reply.status !== 200) {
    const error = new Error(`the runtime API answered /restore/next with ${reply.status}: ${reply.body}`);
    await fail(connection, error, 'init/error', 'Runtime.BeforeSnapshotError', 64);
  }
  try {
    unique.reseed();
    await hooks.runAfter();
  } catch (error) {
    await fail(connection, error, 'restore/error', 'Runtime.AfterRestoreError', 65);
  }
  return 'lambda-runtime-aws-request-id' in reply.headers ? reply : null;
}

// In a copy of an instance that was waiting for its next event, before it gets this one.
async function renew(connection, headers) {
  try {
    unique.reseed();
    await hooks.runAfter();
  } catch (error) {
    const path = `invocation/${headers['lambda-runtime-aws-request-id']}/error`;
    await fail(connection, error, path, 'Runtime.AfterRestoreError', 65);
  }
}

async function main() {
  const isTemplate = process.argv.length === 2 && env.ROUSE_TEMPLATE === '1';
  let name = process.argv[2] ?? env._HANDLER ?? '';
  process.argv.length = 2;
  log.patchConsole();
  const connection = new Connection(env.AWS_LAMBDA_RUNTIME_API);
  if (isTemplate) {
    // From the first collection on no small heap starts the timer, and node's modules are loaded with their bytecode.
    collectGarbage();
    name = await require('./template.cjs').become(connection, () => { postponeMemoryReducer(true); return settle(); });
  } else if (env.AWS_LAMBDA_INITIALIZATION_TYPE === 'snap-start') {
    postponeMemoryReducer(true);
  }
  watchUncaught(connection, () => {
    const id = log.state.requestId;
    return { path: id === undefined ? 'init/error' : `invocation/${id}/error` };
  });
  let handler;
  try {
    handler = await load(env.LAMBDA_TASK_ROOT ?? '/var/task', name);
  } catch (error) {
    await fail(connection, error, 'init/error', null, 1);
  }
  const first = env.AWS_LAMBDA_INITIALIZATION_TYPE === 'snap-start' ? await snapshot(connection, handler) : null;
  // In a copy that shows the node what an invocation touches, and ends then, the function's own handler never runs.
  const isRehearsal = first !== null && 'rouse-rehearsal' in first.headers;
  await serve(connection, isRehearsal ? rehearse : handler, first);
}

main();
