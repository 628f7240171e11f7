// Runs an ONNX model with the npm package onnxruntime-web: node onnxruntime_web.mjs FOLDER, where node_modules lies.
// A message is the length of its header (4 bytes, little endian), a JSON header, and the bytes of its tensors.
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(path.resolve(process.argv[2]), "index.js"));
const ort = require("onnxruntime-web");

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array,
  int8: Int8Array, uint8: Uint8Array, bool: Uint8Array,
};
const WARM_UP = 10;
const MIN_ROUNDS = 15;
let session;

async function* readMessages() {
  let buffer = Buffer.alloc(0);
  const take = (size) => {
    const part = buffer.subarray(0, size);
    buffer = buffer.subarray(size);
    return part;
  };
  let header, waited = 4;
  for await (const chunk of process.stdin) {
    buffer = Buffer.concat([buffer, chunk]);
    while (buffer.length >= waited) {
      if (header === undefined) {
        const length = buffer.readUInt32LE(0);
        if (buffer.length < 4 + length) { waited = 4 + length; break; }
        take(4);
        header = JSON.parse(take(length).toString());
        waited = header.sizes.reduce((sum, size) => sum + size, 0);
        if (buffer.length < waited) break;
      }
      // A copy, because a typed array needs an aligned buffer of its own.
      const parts = header.sizes.map((size) => new Uint8Array(take(size)));
      const message = header;
      header = undefined;
      waited = 4;
      yield [message, parts];
    }
  }
}

function writeMessage(header, parts = []) {
  const bytes = parts.map((part) => Buffer.from(part.buffer, part.byteOffset, part.byteLength));
  const text = Buffer.from(JSON.stringify({ ...header, sizes: bytes.map((part) => part.length) }));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  process.stdout.write(Buffer.concat([length, text, ...bytes]));
}

function readFeeds(message, parts) {
  return Object.fromEntries(message.inputs.map(({ type, dims }, at) => {
    const Values = ARRAYS[type];
    return [session.inputNames[at], new ort.Tensor(type, new Values(parts[at].buffer), dims)];
  }));
}

async function answer(message, parts) {
  if (message.kind === "load") {
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = message.threads;
    session = await ort.InferenceSession.create(parts[0], { executionProviders: ["wasm"], logSeverityLevel: 3 });
    return writeMessage({ inputs: session.inputNames.length });
  }
  const feeds = readFeeds(message, parts);
  if (message.kind === "run") {
    const results = await session.run(feeds);
    const outputs = session.outputNames.map((name) => results[name]);
    const described = outputs.map(({ type, dims }) => ({ type, dims }));
    return writeMessage({ outputs: described }, outputs.map(({ data }) => data));
  }
  for (let run = 0; run < WARM_UP; run++) await session.run(feeds);
  const times = [];
  const end = performance.now() + message.seconds * 1000;
  while (times.length < MIN_ROUNDS || performance.now() < end) {
    const started = performance.now();
    await session.run(feeds);
    times.push(performance.now() - started);
  }
  return writeMessage({ times });
}

for await (const [message, parts] of readMessages()) {
  try {
    await answer(message, parts);
  } catch (error) {
    writeMessage({ error: String(error.message ?? error) });
  }
}
