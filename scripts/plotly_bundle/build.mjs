import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { build } from "esbuild";

const require = createRequire(import.meta.url);
const { environmentPlugin } = require("esbuild-plugin-environment");
const { glsl } = require("esbuild-plugin-glsl");
const inlineCss = require("esbuild-plugin-inline-css");
const { version } = JSON.parse(readFileSync("node_modules/plotly.js/package.json", "utf8"));

// The options are those of plotly.js's own esbuild-config.js.
await build({
  entryPoints: ["entry.js"],
  outfile: "../../autocompress/report/vendor/plotly-custom.min.js",
  banner: { js: `/**\n* plotly.js (scatter, bar, parcoords; strict - minified) v${version}\n* Copyright 2012-2026, Plotly, Inc.\n* All rights reserved.\n* Licensed under the MIT license\n*/` },
  format: "iife", globalName: "Plotly", bundle: true, minify: true, legalComments: "none", target: "es2016", charset: "utf8",
  plugins: [inlineCss(), glsl({ minify: true }), environmentPlugin({ NODE_DEBUG: false })],
  alias: { regl: "@plotly/regl", stream: "stream-browserify" },
  define: { global: "window", "define.amd": "false" },
});
