// A gRPC server and a gRPC client on @grpc/grpc-js, without generated code: messages are bytes. Called as `peer.py` is, and doing the same;
// the folder of the packages is the first argument, `soon` in seconds the second.
'use strict';
const assert = require('node:assert/strict');
const grpc = require(process.argv[1] + '/@grpc/grpc-js');
const soon = () => ({ deadline: Date.now() + 1000 * Number(process.argv[2]) });
const LARGE = 20_000_000;
const OPTIONS = { 'grpc.max_receive_message_length': -1, 'grpc.max_send_message_length': -1 };
const ALL_BYTES = Buffer.from(Array.from({ length: 256 }, (_, at) => at));

const method = (name, requestStream, responseStream) => ({
  path: '/test.Peer/' + name, requestStream, responseStream, requestSerialize: (bytes) => bytes, requestDeserialize: (bytes) => bytes,
  responseSerialize: (bytes) => bytes, responseDeserialize: (bytes) => bytes,
});
const METHODS = {
  unary: method('Unary', false, false), total: method('Total', true, false), count: method('Count', false, true),
  echo: method('Echo', true, true), hang: method('Hang', false, true), none: method('None', false, false),
};

function unary(call, answer) {
  const [initial, trailing] = [new grpc.Metadata(), new grpc.Metadata()];
  initial.set('x-initial', call.metadata.get('x-told')[0] ?? '');
  initial.set('x-bin', call.metadata.get('x-told-bin')[0] ?? Buffer.alloc(0));
  call.sendMetadata(initial);
  trailing.set('x-trailing', 't'.repeat(300));
  trailing.set('x-trailing-bin', ALL_BYTES);
  const code = call.metadata.get('x-code')[0];
  if (code) answer({ code: Number(code), details: 'told so: 100 % ☕', metadata: trailing });
  else answer(null, call.request, trailing);
}

function total(call, answer) {
  let [messages, bytes] = [0, 0];
  call.on('data', (message) => { messages += 1; bytes += message.length; });
  call.on('end', () => answer(null, Buffer.from(`${messages} ${bytes}`)));
}

async function count(call) {
  const [messages, size] = call.request.toString().split(' ').map(Number);
  for (let serial = 0; serial < messages; serial += 1) {
    const message = Buffer.alloc(size + 4, 'm');
    message.writeUInt32BE(serial);
    if (!call.write(message)) await new Promise((resolve) => call.once('drain', resolve));
  }
  call.end();
}

function hang(call) {
  const left = call.getDeadline();
  call.write(Buffer.from(left === Infinity ? 'none' : ((left - Date.now()) / 1000).toFixed(3)));
  call.on('cancelled', () => console.log('given up: ' + call.request));
}

function serve(address) {
  const server = new grpc.Server(OPTIONS);
  const { none, ...served } = METHODS;
  server.addService(served, { unary, total, count, echo: (call) => call.pipe(call), hang });
  server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error) => {
    assert.equal(error, null);
    console.log('serving');
  });
}

const Client = grpc.makeGenericClientConstructor(METHODS, 'test.Peer');
const plain = () => new grpc.Metadata();

// Resolves with everything that came of a call.
function outcome(call, answered) {
  return new Promise((resolve) => {
    const seen = { messages: [] };
    call.on('metadata', (initial) => { seen.initial = initial; });
    // The answer comes after the status.
    call.on('status', (status) => Promise.resolve(answered).then((answer) => resolve({ ...seen, ...status, answer }), () => resolve({ ...seen, ...status })));
    if (!answered) call.on('data', (message) => seen.messages.push(message)).on('error', () => {});
  });
}

function ask(client, name, message, metadata = plain(), options = soon()) {
  let call;
  const answered = new Promise((resolve, reject) => {
    call = client[name](message, metadata, options, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
  return outcome(call, answered);
}

async function callUnary(client) {
  for (const size of [0, 1, 16_379, 16_384, 65_536, LARGE]) {
    const message = Buffer.alloc(size, 'u');
    const { code, answer } = await ask(client, 'unary', message);
    assert.ok(code === 0 && answer.equals(message), `${size} bytes: ${code}`);
  }
  const told = new grpc.Metadata();
  told.set('x-told', 'a, b');
  told.set('x-told-bin', ALL_BYTES);
  const { initial, metadata } = await ask(client, 'unary', Buffer.from('x'), told);
  assert.deepEqual([initial.get('x-initial'), initial.get('x-bin')], [['a, b'], [ALL_BYTES]]);
  assert.deepEqual([metadata.get('x-trailing'), metadata.get('x-trailing-bin')], [['t'.repeat(300)], [ALL_BYTES]]);
  for (let number = 1; number <= 16; number += 1) {
    const wanted = new grpc.Metadata();
    wanted.set('x-code', String(number));
    const { code, details, metadata: trailing } = await ask(client, 'unary', Buffer.from('x'), wanted);
    assert.deepEqual([code, details, trailing.get('x-trailing')], [number, 'told so: 100 % ☕', ['t'.repeat(300)]]);
  }
  assert.equal((await ask(client, 'none', Buffer.from('x'))).code, grpc.status.UNIMPLEMENTED);
}

async function callStreams(client) {
  const pieces = Array.from({ length: 150 }, (_, at) => Buffer.alloc([0, 1, 70_000][at % 3], 'p'));
  const bytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const answer = await new Promise((resolve, reject) => {
    const call = client.total(plain(), soon(), (error, message) => (error ? reject(error) : resolve(message)));
    pieces.forEach((piece) => call.write(piece));
    call.end();
  });
  assert.equal(answer.toString(), `${pieces.length} ${bytes}`);
  for (const [messages, size] of [[0, 0], [1_000, 10], [50, 100_000]]) {
    const counted = await outcome(client.count(Buffer.from(`${messages} ${size}`), plain(), soon()));
    assert.deepEqual(counted.messages.map((message) => message.readUInt32BE()), [...Array(messages).keys()]);
    assert.ok(counted.code === 0 && counted.messages.every((message) => message.length === size + 4));
  }
  const echoing = client.echo(plain(), soon());
  const echoed = outcome(echoing);
  pieces.forEach((piece) => echoing.write(piece));
  echoing.end();
  assert.deepEqual((await echoed).messages, pieces);
  // In turns: each message is sent when the one before has come back.
  const turns = client.echo(plain(), soon());
  const taken = outcome(turns);
  turns.write(Buffer.from('0'));
  turns.on('data', (message) => (message.equals(Buffer.from('99')) ? turns.end() : turns.write(Buffer.from(String(Number(message) + 1)))));
  assert.equal((await taken).messages.length, 100);
}

async function callAndGiveUp(client) {
  const cancelled = client.hang(Buffer.from('node cancels'), plain());
  const ended = outcome(cancelled);
  cancelled.on('data', () => cancelled.cancel());
  const { code, messages } = await ended;
  assert.deepEqual([code, String(messages[0])], [grpc.status.CANCELLED, 'none']);
  const late = await outcome(client.hang(Buffer.from('node has a deadline'), plain(), { deadline: Date.now() + 1000 }));
  assert.equal(late.code, grpc.status.DEADLINE_EXCEEDED);
  assert.ok(Number(late.messages[0]) > 0 && Number(late.messages[0]) < 1.1, String(late.messages[0]));
  const message = Buffer.alloc(1_000, 'c');
  const many = await Promise.all(Array.from({ length: 500 }, () => ask(client, 'unary', message)));
  assert.ok(many.every(({ code: each, answer }) => each === 0 && answer.equals(message)));
}

async function call(address) {
  const client = new Client(address, grpc.credentials.createInsecure(), OPTIONS);
  await callUnary(client);
  await callStreams(client);
  await callAndGiveUp(client);
  client.close();
}

async function nobody(address, isTold = false) {
  const client = new Client(address, grpc.credentials.createInsecure(), OPTIONS);
  const { code, details } = await ask(client, 'unary', Buffer.from('x'));
  assert.equal(code, grpc.status.UNAVAILABLE);
  if (isTold) assert.match(details, /^sockway: /);
  client.close();
}

const [role, address] = process.argv.slice(3);
if (role === 'serve') serve(address);
else ({ call, nobody, told: (at) => nobody(at, true) })[role](address).then(() => console.log('done'));
