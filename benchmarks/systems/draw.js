// Draws captchas with a generator from npm, in its default look: node draw.js SYSTEM FOLDER COUNT SEED.
//
// NODE_PATH names the node_modules folder of that generator's own environment. The files are
// LABEL_000001.png and so on, or .gif where the generator makes GIF.
"use strict";

const crypto = require("crypto");
const fs = require("fs");
const path = require("path");

// All random numbers, those of the module crypto too, follow from the seed.
function seedEverything(seed) {
  let state = seed >>> 0;
  Math.random = () => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  crypto.randomBytes = (size, callback) => {
    const bytes = Buffer.from(Array.from({ length: size }, () => Math.floor(256 * Math.random())));
    return callback ? callback(null, bytes) : bytes;
  };
}

// Each of the following returns a function that draws one captcha: {label, file}, or a promise of that.

// svg-captcha with its defaults: 4 of 62 letters of both cases and digits. The SVG is rendered on white.
function svgCaptcha() {
  const { create } = require("svg-captcha");
  const { Resvg } = require("@resvg/resvg-js");
  return () => {
    const { text, data } = create();
    return { label: text, file: new Resvg(data, { background: "white" }).render().asPng() };
  };
}

// trek-captcha with its defaults: 5 lower-case letters, of which its font lacks some.
function trekCaptcha() {
  const captcha = require("trek-captcha");
  return async () => {
    const { token, buffer } = await captcha();
    return { label: token, file: buffer };
  };
}

// captchapng as in its example: 4 digits, the first not 0, dark gray on a transparent background.
function captchapng() {
  const Captcha = require("captchapng");
  return () => {
    const label = String(Math.floor(1000 + 9000 * Math.random()));
    const captcha = new Captcha(80, 30, label);
    captcha.color(0, 0, 0, 0);
    captcha.color(80, 80, 80, 255);
    return { label, file: Buffer.from(captcha.getBase64(), "base64") };
  };
}

// captcha-canvas as in its first example: 6 hexadecimal digits, 300x100, on a transparent background.
// It draws in the font that the system calls Sans; here that is DejaVu Sans. In place of skia-canvas,
// which downloads its program when it is installed, it gets @napi-rs/canvas, which also draws with Skia.
function captchaCanvas() {
  const { Canvas, GlobalFonts } = require("@napi-rs/canvas");
  const fonts = path.join(path.dirname(require.resolve("dejavu-fonts-ttf/package.json")), "ttf");
  GlobalFonts.registerFromPath(path.join(fonts, "DejaVuSans.ttf"), "Sans");
  Object.getPrototypeOf(new Canvas(1, 1)).toBufferSync = function () {
    return this.toBuffer("image/png");
  };
  require.cache[require.resolve("skia-canvas")] = require.cache[require.resolve("@napi-rs/canvas")];
  const { createCaptchaSync } = require("captcha-canvas");
  return () => {
    const { image, text } = createCaptchaSync(300, 100);
    return { label: text, file: image };
  };
}

const GENERATORS = {
  "svg-captcha": svgCaptcha,
  "trek-captcha": trekCaptcha,
  captchapng,
  "captcha-canvas": captchaCanvas,
};

async function main(system, folder, count, seed) {
  seedEverything(Number(seed));
  const draw = GENERATORS[system]();
  for (let i = 1; i <= Number(count); i++) {
    const { label, file } = await draw();
    const extension = file.subarray(0, 3).toString() === "GIF" ? "gif" : "png";
    fs.writeFileSync(path.join(folder, `${label}_${String(i).padStart(6, "0")}.${extension}`), file);
  }
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
