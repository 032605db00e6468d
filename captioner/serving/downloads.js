// ------------------------------------------------------------------------------------------------ downloads

const NO_NAME = /[\\:*?"<>|\u0000-\u001f\u007f]/g; // what file names may not hold

function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { download: name, href: URL.createObjectURL(blob) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), STATUS);
}

// The name of a photo's file without its extension, safe as a path inside an archive.
function fileStem(name) {
  const parts = name.split("/").map((part) => part.replace(NO_NAME, "_").replace(/^\.+/, "_"));
  return parts.join("/").replace(/(.)\.[^./]*$/, "$1");
}

// The text files of captions: name -> text. Of photos of one name, all but the first get a number.
function textFiles(photos) {
  const files = new Map();
  for (const { name, text } of photos.filter((each) => each.text?.trim())) {
    let path = `${fileStem(name)}.txt`;
    for (let copy = 2; files.has(path); copy++) path = `${fileStem(name)} (${copy}).txt`;
    files.set(path, text.split("\n").map((line) => line.trim()).filter(Boolean).map((line) => `${line}\n`).join(""));
  }
  return files;
}

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
