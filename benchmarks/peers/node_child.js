"use strict";
// The serving side: one handler, its reply sent with the id of the request.

const handlers = {
  echo({ n, text }) {
    return { n, text };
  },
};

process.on("message", ({ id, method, params }) => {
  process.send({ id, result: handlers[method](params) });
});
