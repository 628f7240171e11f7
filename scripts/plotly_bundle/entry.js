// What the pages draw: points and lines, bars, parallel coordinates. The strict variant compiles nothing at run time,
// because the content security policy of the pages forbids it.
const Plotly = require("plotly.js/lib/core");
Plotly.register([require("plotly.js/lib/bar"), require("plotly.js/src/traces/parcoords/strict")]);
module.exports = Plotly;
