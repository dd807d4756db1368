'use strict';
// Finds a function's handler: `file.export` or `folder/file.export.nested`, as CommonJS or as an ES module.

const fs = require('node:fs');
const path = require('node:path');
const { pathToFileURL } = require('node:url');

class Fault extends Error {
  constructor(name, message) {
    super(message);
    this.name = name;
  }
}

async function load(root, name) {
  const match = /^((?:.*\/)?[^./][^/]*?)\.([^/]+)$/.exec(name);
  if (match === null || name.includes('..')) throw new Fault('Runtime.MalformedHandlerName', 'Bad handler');
  const [, file, exported] = match;
  const module = await loadModule(path.resolve(root, file), file);
  const find = (from) => exported.split('.').reduce((value, key) => value?.[key], from);
  // A CommonJS module that is imported has its exports below `default`.
  const handler = find(module) ?? find(module?.default);
  if (handler === undefined || handler === null) {
    throw new Fault('Runtime.HandlerNotFound', `${name} is undefined or not exported`);
  }
  if (typeof handler !== 'function') throw new Fault('Runtime.HandlerNotFound', `${name} is not a function`);
  return handler;
}

async function loadModule(absolute, file) {
  const found = ['', '.js', '.mjs', '.cjs'].map((extension) => absolute + extension).find(isFile);
  try {
    if (found === undefined) return require(absolute);
    if (found.endsWith('.mjs')) return await import(pathToFileURL(found).href);
    try {
      return require(found);
    } catch (error) {
      if (error?.code !== 'ERR_REQUIRE_ESM' && error?.code !== 'ERR_REQUIRE_ASYNC_MODULE') throw error;
      return await import(pathToFileURL(found).href);
    }
  } catch (error) {
    if (error instanceof SyntaxError) throw fault('Runtime.UserCodeSyntaxError', error);
    if (error?.code === 'MODULE_NOT_FOUND' || error?.code === 'ERR_MODULE_NOT_FOUND') {
      throw found === undefined
        ? new Fault('Runtime.ImportModuleError', `Error: Cannot find module '${file}'`)
        : fault('Runtime.ImportModuleError', error);
    }
    throw error;
  }
}

function fault(name, error) {
  const result = new Fault(name, String(error));
  result.stack = error.stack;
  return result;
}

function isFile(name) {
  return fs.statSync(name, { throwIfNoEntry: false })?.isFile() ?? false;
}

module.exports = { load };
