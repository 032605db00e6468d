const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

// A zip archive of texts, stored without compression, with names in UTF-8.
function zip(files) {
  const parts = [], directory = [], encoder = new TextEncoder();
  const size = (blocks) => blocks.reduce((sum, block) => sum + block.length, 0);
  const numbers = (...pairs) => Uint8Array.from(pairs.flatMap(([width, value]) =>
    Array.from({ length: width }, (_, place) => (value >>> (8 * place)) & 255)));
  for (const [name, text] of files) {
    const [path, data] = [name, text].map((each) => encoder.encode(each)), offset = size(parts);
    const crc = ~data.reduce((sum, byte) => CRC_TABLE[(sum ^ byte) & 255] ^ (sum >>> 8), -1) >>> 0;
    // Version, UTF-8 names, stored, midnight, January 1980; then sum, sizes and lengths.
    const about = [[2, 20], [2, 0x800], [2, 0], [2, 0], [2, 0x21], [4, crc], [4, data.length], [4, data.length],
      [2, path.length], [2, 0]];
    parts.push(numbers([4, 0x04034b50], ...about), path, data);
    directory.push(numbers([4, 0x02014b50], [2, 20], ...about, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]), path);
  }
  const end = numbers([4, 0x06054b50], [4, 0], [2, files.size], [2, files.size], [4, size(directory)], [4, size(parts)],
    [2, 0]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}
