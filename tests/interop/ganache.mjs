// ganache on any free port, which its command line refuses; it mines only when told to.

import ganache from "ganache";

const server = ganache.server({ logging: { quiet: true }, wallet: { deterministic: true } });
await server.listen(0, "127.0.0.1");
await server.provider.request({ method: "miner_stop", params: [] });
console.log(`Listening on 127.0.0.1:${server.address().port}`);
