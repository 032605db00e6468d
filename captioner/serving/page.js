"use strict";

const byId = (id) => document.getElementById(id);
const PAGE = 24; // photos of the folder on a page
const PARALLEL = 4; // requests for captions at a time
const CAPTIONS = 3; // captions in a report: the model's best, and others it found
const RETRY = 1000, STATUS = 6000; // milliseconds between attempts, and those that a message stays

const photos = new Map(); // id -> photo, of all pages that were shown
let uploads = [], listed = []; // photos in the gallery: those added here, and a page of the server's folder
let start = 0; // of the page
let opened = null; // the photo in the viewer
let lanes = Array(PARALLEL).fill(Promise.resolve()); // each captions one photo after another
let queries = 0; // number of reports that were requested
let token = sessionStorage.getItem("token") ?? "";
let asking = null; // resolves once the user has entered a token

// ------------------------------------------------------------------------------------------------ the server

// A response; waits while the server is busy, and asks for its token. Throws an Error with the server's reason.
async function request(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    const sent = token, response = await fetch(path, { ...options, headers }).catch(() => {
      throw new Error("The server does not answer.");
    });
    if (response.ok) return response;
    const problem = await response.json().catch(() => ({}));
    if (response.status === 401) {
      if (sent === token) await (asking ??= askForToken());
    } else if (["busy", "loading"].includes(problem.code)) {
      if (problem.code === "loading") say("The model is loading…");
      await new Promise((done) => setTimeout(done, RETRY));
    } else throw new Error(problem.detail ?? `The server answered ${response.status}.`);
  }
}

async function askForToken() {
  const dialog = byId("token"), input = dialog.querySelector("input");
  byId("token-title").textContent = token ? "That token was not accepted" : "This server needs a token";
  input.value = dialog.returnValue = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  asking = null;
  if (!dialog.returnValue) throw new Error("This server needs a token; reload the page to enter it.");
  token = input.value;
  sessionStorage.setItem("token", token);
}

function say(text) {
  byId("status").textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => byId("status").replaceChildren(), STATUS);
}

async function upload(path, field, photo, query, headers) {
  const body = new FormData();
  body.append(field, await photo.file(), photo.name);
  return request(`${path}?${new URLSearchParams(query)}`, { method: "POST", body, headers });
}

async function captionOf(photo, query = {}) {
  const { results: [record] } = await (await upload("/v1/caption", "files", photo, query)).json();
  return record;
}

// ------------------------------------------------------------------------------------------------ photos

function addPhoto(id, name, about) {
  const item = byId("card").content.cloneNode(true).firstElementChild;
  const photo = { id, name, text: null, saved: null, record: null, error: "", view: null, state: "", item, ...about };
  const [link, area, button] = ["a", "textarea", "button"].map((each) => item.querySelector(each));
  link.href = `#photo=${id}`;
  link.setAttribute("aria-label", `Open ${name}`);
  area.setAttribute("aria-label", `Caption of ${name}`);
  item.querySelector(".name").textContent = name;
  item.querySelector("img").addEventListener("error", (event) => link.replaceChildren("No preview"));
  area.addEventListener("input", () => edit(photo, area.value));
  button.addEventListener("click", () => save(photo));
  photos.set(id, photo);
  write(photo);
  return photo;
}

function addFiles(files) {
  const added = [...files].map((file) => {
    const photo = addPhoto(`added-${photos.size + 1}`, file.name || "photo", { file: async () => file });
    photo.item.querySelector("img").src = URL.createObjectURL(file);
    caption(photo);
    return photo;
  });
  uploads = [...added, ...uploads];
  writeGallery();
  if (added.length === 1) location.hash = `photo=${added[0].id}`;
  else if (added.length) location.hash = "";
}

function caption(photo) {
  const [lane, ...others] = lanes;
  lanes = [...others, lane.then(() => captionOf(photo)).then((record) => {
    photo.record = record;
    photo.text ??= record.caption;
  }, ({ message }) => { photo.error = message; }).then(() => write(photo))];
}

// Show a page of the server's folder; photos without a caption get one.
async function list(from) {
  const { total, photos: found } = await (await request(`/v1/photos?start=${from}&count=${PAGE}`)).json();
  start = from;
  listed = found.map(({ id, name, caption: saved, read_only: readOnly }) => {
    if (photos.has(id)) return photos.get(id);
    const file = async () => (await request(`/v1/photos/${id}`)).blob();
    const photo = addPhoto(id, name, { file, folder: true, saved, readOnly, text: saved });
    request(`/v1/photos/${id}/thumbnail`).then(async (response) => {
      photo.item.querySelector("img").src = URL.createObjectURL(await response.blob());
    }).catch(() => photo.item.querySelector("a").replaceChildren("No preview"));
    if (saved === null) caption(photo);
    return photo;
  });
  byId("pages").hidden = total <= PAGE;
  byId("range").textContent = `${start + 1} to ${start + listed.length} of ${total}`;
  byId("earlier").disabled = !start;
  byId("later").disabled = start + PAGE >= total;
  writeGallery();
}

function edit(photo, text) {
  photo.text = text;
  write(photo);
}

const isUnsaved = ({ folder, readOnly, text, saved }) =>
  Boolean(folder && !readOnly && text?.trim()) && text !== saved;

async function save(photo) {
  try {
    const response = await request(`/v1/photos/${photo.id}/caption`, {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ caption: photo.text, replaces: photo.saved }),
    });
    photo.text = photo.saved = (await response.json()).caption;
    say("Saved.");
  } catch (error) {
    say(error.message);
  }
  write(photo);
}

// ------------------------------------------------------------------------------------------------ gallery and viewer

function statusOf(photo) {
  const { record, text, error } = photo;
  if (error) return error;
  if (text === null) return "Captioning…";
  const isOwn = record !== null && text === record.caption;
  return [
    isOwn ? `confidence ${Math.round(100 * record.confidence)}\u00a0%` : "",
    isOwn && record.notes.includes("unfamiliar") ? "unlike the training photos: the caption may well be wrong" : "",
    photo.readOnly ? "its text file cannot be changed here" : "",
    isUnsaved(photo) ? "not saved" : photo.folder && photo.saved !== null ? "saved" : "",
  ].filter(Boolean).join(" · ");
}

function write(photo) {
  const fill = (area, note, button) => {
    if (area.value !== (photo.text ?? "")) area.value = photo.text ?? "";
    area.readOnly = photo.text === null || Boolean(photo.readOnly);
    note.textContent = statusOf(photo);
    note.classList.toggle("warning", photo.error !== "");
    button.hidden = !photo.folder;
    button.disabled = !isUnsaved(photo);
  };
  fill(...["textarea", ".note", "button"].map((each) => photo.item.querySelector(each)));
  if (photo === opened) {
    fill(byId("caption"), byId("note"), byId("save"));
    writeShown();
  }
  byId("zip").hidden = ![...photos.values()].some((each) => each.text);
  byId("save-all").hidden = ![...photos.values()].some(isUnsaved);
}

function writeGallery() {
  byId("cards").replaceChildren(...[...uploads, ...listed].map((photo) => photo.item));
  route();
}

// Show what the address names: a photo with the state of its report, or the gallery.
function route() {
  const params = new URLSearchParams(location.hash.slice(1)), photo = photos.get(params.get("photo")) ?? null;
  const order = [...uploads, ...listed], place = order.indexOf(photo);
  byId("start").hidden = order.length > 0;
  byId("gallery").hidden = photo !== null || !order.length;
  byId("viewer").hidden = photo === null;
  document.title = photo ? `${photo.name} · captioner` : "captioner";
  byId("place").textContent = order.length > 1 ? `${place + 1} of ${order.length}` : "";
  for (const [id, neighbor] of [["previous", order[place - 1]], ["following", order[place + 1]]]) {
    if (neighbor) byId(id).href = `#photo=${neighbor.id}`;
    else byId(id).removeAttribute("href");
  }
  if (photo === opened) return;
  opened = photo;
  byId("report").replaceChildren();
  if (!photo) return;
  if (photo.item.querySelector("img")) byId("report").append(photo.item.querySelector("img").cloneNode());
  params.delete("photo");
  photo.state = String(params) || photo.state;
  byId("name").textContent = photo.name;
  byId("wanted").value = "";
  byId("name").focus();
  write(photo);
  if (photo.view) writeViewer();
  else show(photo, { about: "" });
}

// Show the report of a photo: of its own caption, another, one that begins with some words, or one of a part of it.
async function show(photo, { about, caption, prefix, region }) {
  const query = ++queries;
  byId("report").setAttribute("aria-busy", true);
  byId("download").disabled = true;
  try {
    const part = region && { region: region.map((each) => each.toFixed(4)).join(",") };
    if (prefix || part) ({ caption } = await captionOf(photo, { ...part, ...(prefix && { prefix }) }));
    const chosen = caption === undefined ? { num_captions: CAPTIONS } : { caption, ...part };
    const html = await (await upload("/v1/inspect", "file", photo, chosen, { Accept: "text/html" })).text();
    if (photo.view) photo.state = "";
    photo.view = { about, html, shown: null };
  } catch (error) {
    say(error.message);
  }
  if (query === queries && photo === opened) writeViewer();
}

function writeViewer() {
  const { view } = opened, frame = document.createElement("iframe"), photo = opened;
  byId("report").setAttribute("aria-busy", false);
  byId("download").disabled = !view;
  writeShown();
  if (!view) return;
  frame.title = "Where each word of the caption came from";
  frame.sandbox = "allow-scripts";
  frame.srcdoc = view.html;
  frame.addEventListener("load", () => {
    const { port1, port2 } = new MessageChannel();
    port1.addEventListener("message", ({ data }) => answer(photo, frame, data));
    port1.start();
    frame.contentWindow.postMessage({ type: "connect", state: photo.state, height: innerHeight }, "*", [port2]);
  });
  byId("report").replaceChildren(frame);
}

// Say which caption the report shows. The line stays, so that the report below it does not move under the pointer.
function writeShown() {
  const { view, text } = opened;
  byId("about").textContent = view?.about || "A caption the model found";
  byId("own").hidden = !view?.about;
  byId("use").hidden = !view?.shown || view.shown === text;
  byId("shown").hidden = !view;
}

// Answer a message of a report.
function answer(photo, frame, { type, height, state, caption, words, ended, region }) {
  if (photo !== opened || !frame.isConnected) return;
  if (type === "height") frame.style.height = `${height + 1}px`;
  if (type === "state") {
    photo.state = state;
    photo.view.shown = caption;
    writeShown();
    history.replaceState(null, "", `#photo=${photo.id}${state && `&${state}`}`);
  }
  if (type === "words" && words.length) {
    const text = words.join(" ");
    show(photo, { about: `Continued from “${text}”`, ...(ended ? { caption: text } : { prefix: text }) });
  }
  if (type === "region") show(photo, { about: "Caption of the part you chose", region });
}

// ------------------------------------------------------------------------------------------------ events

for (const input of document.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", () => {
    addFiles(input.files);
    input.value = "";
  });
}
for (const [type, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(type, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return; // text that is dragged into a field
    event.preventDefault();
    document.body.classList.toggle("dropping", isOver);
    if (type === "drop") addFiles(event.dataTransfer.files);
  });
}
document.addEventListener("paste", ({ clipboardData: { files } }) => files.length && addFiles(files));
byId("caption").addEventListener("input", (event) => edit(opened, event.target.value));
byId("save").addEventListener("click", () => save(opened));
byId("save-all").addEventListener("click", () => [...photos.values()].filter(isUnsaved).forEach(save));
byId("copy").addEventListener("click", async () => {
  const field = byId("caption");
  await navigator.clipboard?.writeText(field.value).catch(() => null);
  field.select();
  if (!navigator.clipboard) document.execCommand("copy"); // a page without HTTPS has no clipboard
  say("Copied.");
});
byId("other").addEventListener("submit", (event) => {
  event.preventDefault();
  show(opened, { about: "Your caption", caption: byId("wanted").value });
});
byId("own").addEventListener("click", () => show(opened, { about: "" }));
byId("use").addEventListener("click", () => edit(opened, opened.view.shown));
byId("earlier").addEventListener("click", () => list(start - PAGE).catch(({ message }) => say(message)));
byId("later").addEventListener("click", () => list(start + PAGE).catch(({ message }) => say(message)));
byId("zip").addEventListener("click", () => download("captions.zip", zip(textFiles([...photos.values()]))));
byId("download").addEventListener("click", () =>
  download(`${fileStem(opened.name)}.html`, new Blob([opened.view.html], { type: "text/html" })));
window.addEventListener("hashchange", route);
window.addEventListener("beforeunload", (event) => {
  const wasEdited = (photo) => isUnsaved(photo) && photo.text !== photo.record?.caption;
  if ([...photos.values()].some(wasEdited)) event.preventDefault();
});

request("/v1/model").then(async (response) => {
  const { name, has_folder: hasFolder } = await response.json();
  byId("model").textContent = `Model “${name}”`;
  if (hasFolder) await list(0);
  document.documentElement.dataset.ready = "";
}).catch(({ message }) => say(message));
