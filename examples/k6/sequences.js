// Load by k6 over the Open Inference Protocol: every virtual user steps sequences of its own, by calls and on a stream.
//
//   k6 run --vus 8 --duration 10s -e TARGET=127.0.0.1:8500 examples/k6/sequences.js
//
// MODEL and INPUT name a model whose step is one integer, text-gru's token by default; STEPS are those of a sequence.
import { b64decode } from 'k6/encoding';
import { check } from 'k6';
import exec from 'k6/execution';
import grpc from 'k6/net/grpc';

const SERVICE = 'inference.GRPCInferenceService';
const TARGET = __ENV.TARGET || '127.0.0.1:8500';
const MODEL = __ENV.MODEL || 'text-gru';
const INPUT = __ENV.INPUT || 'tokens';
const STEPS = Number(__ENV.STEPS || 5);

const client = new grpc.Client();
client.load(['../../protos'], 'inference/grpc_service.proto');

// Every sequence of the run has a number of its own.
function sequenceId(kind) {
  return 2 * (exec.vu.idInTest * 1000000 + exec.vu.iterationInInstance) + kind + 1;
}

function request(sequence, step) {
  return {
    model_name: MODEL,
    id: `${sequence}/${step}`,
    parameters: {
      sequence_id: { int64_param: sequence },
      sequence_start: { bool_param: step === 1 },
      sequence_end: { bool_param: step === STEPS },
    },
    inputs: [{ name: INPUT, datatype: 'INT64', shape: [1, 1], contents: { int64_contents: [step] } }],
  };
}

function isAnswer(response, sequence, step) {
  return (
    response.id === `${sequence}/${step}` &&
    response.rawOutputContents.length === response.outputs.length &&
    b64decode(response.rawOutputContents[0]).byteLength > 0
  );
}

function byCalls(sequence) {
  for (let step = 1; step <= STEPS; step += 1) {
    const response = client.invoke(`${SERVICE}/ModelInfer`, request(sequence, step));
    check(response, {
      'a call is answered': (given) => given.status === grpc.StatusOK && isAnswer(given.message, sequence, step),
    });
  }
}

function onStream(sequence) {
  const stream = new grpc.Stream(client, `${SERVICE}/ModelStreamInfer`);
  let answered = 0;
  stream.on('data', (response) => {
    answered += 1;
    check(response, {
      'a step on a stream is answered': (given) =>
        !given.errorMessage && isAnswer(given.inferResponse, sequence, answered),
    });
  });
  stream.on('error', (error) => check(error, { 'a stream has no error': () => false }));
  stream.on('end', () => {
    check(answered, { 'every step of a stream is answered': (count) => count === STEPS });
    client.close();
  });
  for (let step = 1; step <= STEPS; step += 1) {
    stream.write(request(sequence, step));
  }
  stream.end();
}

export const options = { thresholds: { checks: ['rate==1'] } };

export default function () {
  client.connect(TARGET, { plaintext: true });
  byCalls(sequenceId(0));
  onStream(sequenceId(1));
}
