// A picture with a palette: a third of the size of a browser's own.

import { deflateSync } from "node:zlib";

const COLOURS = 64;

/** Runs in a browser, which reads pictures: the commonest colours, and for each pixel the nearest of them. */
async function index([base64, most]) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, width, height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  const parts = (pixel) => [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255];
  const distance = (a, b) => a.reduce((sum, part, at) => sum + (part - b[at]) ** 2, 0);
  // Common colours, but none that is nearly one of those before.
  const palette = [];
  for (const [pixel] of [...counts].sort((a, b) => b[1] - a[1])) {
    if (palette.length < most && palette.every((other) => distance(other, parts(pixel)) > 150)) palette.push(parts(pixel));
  }
  const nearest = new Map();
  for (const pixel of counts.keys()) {
    const distances = palette.map((colour) => distance(colour, parts(pixel)));
    nearest.set(pixel, distances.indexOf(Math.min(...distances)));
  }
  return { width, height, palette, indices: Array.from(pixels, (pixel) => nearest.get(pixel)) };
}

const CRC = Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte >>> 0;
});

function chunk(name, data) {
  const body = Buffer.concat([Buffer.from(name), data]);
  const crc = body.reduce((sum, byte) => CRC[(sum ^ byte) & 255] ^ (sum >>> 8), 0xffffffff);
  const [length, end] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  end.writeUInt32BE((crc ^ 0xffffffff) >>> 0);
  return Buffer.concat([length, body, end]);
}

/** Returns the picture with a palette; `page` is any page of the browser without a policy. */
export async function reduce(page, picture) {
  const { width, height, palette, indices } = await page.evaluate(index, [picture.toString("base64"), COLOURS]);
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  // Eight bits a pixel, which are a place in the palette.
  header.set([8, 3, 0, 0, 0], 8);
  const rows = Buffer.alloc((width + 1) * height);
  for (let row = 0; row < height; row++) rows.set(indices.slice(row * width, (row + 1) * width), row * (width + 1) + 1);
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const parts = [chunk("IHDR", header), chunk("PLTE", Buffer.from(palette.flat())), chunk("IDAT", deflateSync(rows, { level: 9 })), chunk("IEND", Buffer.alloc(0))];
  return Buffer.concat([signature, ...parts]);
}
