"use strict";
// The asking side, and the commands of benchmarks/worker.py: [name, count] lines on stdin.

const { fork } = require("node:child_process");
const { once } = require("node:events");
const path = require("node:path");
const readline = require("node:readline");

const MESSAGE = { n: 1, text: "hello" };
const IN_FLIGHT = 64;

const child = fork(path.join(__dirname, "node_child.js"));
const pending = new Map();
let lastId = 0;

child.on("message", ({ id, result }) => {
  const resolve = pending.get(id);
  pending.delete(id);
  resolve(result);
});

function request(method, params) {
  return new Promise((resolve) => {
    const id = ++lastId;
    pending.set(id, resolve);
    child.send({ id, method, params });
  });
}

function check(reply) {
  if (reply.n !== MESSAGE.n || reply.text !== MESSAGE.text) {
    throw new Error("the echo is not what was sent");
  }
}

const commands = {
  async sequential(count) {
    const times = [];
    for (let done = 0; done < count; done++) {
      const begin = process.hrtime.bigint();
      const reply = await request("echo", MESSAGE);
      times.push(Number(process.hrtime.bigint() - begin));
      check(reply);
    }
    times.sort((a, b) => a - b);
    return times[times.length >> 1] / 1000;
  },

  async in_flight(count) {
    const each = Math.max(1, Math.floor(count / IN_FLIGHT));
    const begin = process.hrtime.bigint();
    await Promise.all(
      Array.from({ length: IN_FLIGHT }, async () => {
        for (let done = 0; done < each; done++) check(await request("echo", MESSAGE));
      }),
    );
    return (each * IN_FLIGHT) / (Number(process.hrtime.bigint() - begin) / 1e9);
  },
};

function say(message) {
  process.stdout.write(JSON.stringify(message) + "\n");
}

async function main() {
  await once(child, "spawn");
  say({ commands: Object.keys(commands) });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, argument] = JSON.parse(line);
    say(await commands[name](argument));
  }
  child.kill();
}

main();
