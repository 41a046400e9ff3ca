// `hardhat node` mines only when told to. Nothing is compiled here, so no compiler is fetched.
module.exports = { networks: { hardhat: { mining: { auto: false, interval: 0 } } } };
