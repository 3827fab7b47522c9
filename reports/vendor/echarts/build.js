// Bundles entry.js into echarts.min.js, which defines the global `echarts`, and copies the licences beside it.
import { build } from "esbuild";
import { copyFileSync, readFileSync } from "node:fs";

const version = (name) => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version;

await build({
  entryPoints: ["entry.js"],
  outfile: "echarts.min.js",
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "echarts",
  target: "es2020",
  define: { "process.env.NODE_ENV": '"production"' },
  legalComments: "none",
  banner: {
    js:
      `/*! Apache ECharts ${version("echarts")} (Apache-2.0, The Apache Software Foundation), ` +
      `with code of d3 (BSD-3-Clause, Mike Bostock) and zrender ${version("zrender")} (BSD-3-Clause, Baidu Inc.); ` +
      "licences: lorabench/reports/vendor/echarts */",
  },
});

for (const [from, to] of [
  ["echarts/LICENSE", "LICENSE"],
  ["echarts/NOTICE", "NOTICE"],
  ["echarts/licenses/LICENSE-d3", "LICENSE-d3"],
  ["zrender/LICENSE", "LICENSE-zrender"],
])
  copyFileSync(`node_modules/${from}`, to);
