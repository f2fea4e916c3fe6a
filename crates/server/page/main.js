// The page's frame: settings, the two halves, and what both need.
import { Chat } from "./chat.js";
import { watch } from "./engine.js";

const $ = (id) => document.getElementById(id);
const form = $("settings").querySelector("form");
const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "seed"];

// The key is forgotten with the tab; everything else stays.
function load() {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem("settings")) ?? {}; } catch { /* Damaged settings are none. */ }
  for (const field of form.elements) {
    if (field.name) field.value = field.name === "key" ? sessionStorage.getItem("key") ?? "" : kept[field.name] ?? "";
  }
}

function save() {
  const kept = Object.fromEntries(new FormData(form));
  sessionStorage.setItem("key", kept.key);
  delete kept.key;
  localStorage.setItem("settings", JSON.stringify(kept));
}

function toolsOf(text) {
  if (!text.trim()) return [];
  const tools = JSON.parse(text);
  if (!Array.isArray(tools)) throw new Error("a list of tools is wanted");
  return tools;
}

export function headers() {
  const key = sessionStorage.getItem("key");
  return key ? { authorization: `Bearer ${key}` } : {};
}

// The parameters of a request that the settings give.
function parameters() {
  const given = Object.fromEntries(new FormData(form));
  const request = {};
  for (const name of NUMBERS) if (given[name] !== "") request[name] = Number(given[name]);
  if (given.think) request.chat_template_kwargs = { enable_thinking: given.think === "on" };
  const tools = toolsOf(given.tools);
  if (tools.length) request.tools = tools;
  return { system: given.system, request };
}

function checkTools() {
  let problem = "";
  try { toolsOf(form.elements.tools.value); } catch (error) { problem = `Tools: ${error.message}`; }
  $("tools-error").textContent = problem;
  return !problem;
}

load();
const chat = new Chat({ parameters, headers, askKey: () => open("key") });

function open(field) {
  $("settings").showModal();
  if (field) form.elements[field].focus();
}
$("open-settings").addEventListener("click", () => open());
form.elements.tools.addEventListener("change", checkTools);
form.addEventListener("submit", (event) => { if (!checkTools()) event.preventDefault(); });
form.addEventListener("reset", () => setTimeout(() => { save(); checkTools(); }));
$("settings").addEventListener("close", () => {
  save();
  if (!checkTools()) form.elements.tools.value = "";
  engine.restart();
  $("input").focus();
});
$("new").addEventListener("click", () => chat.reset());

const toggle = $("toggle-engine");
function show(visible) {
  $("engine").hidden = !visible;
  toggle.setAttribute("aria-expanded", String(visible));
  engine.set(visible);
}
const engine = watch(headers, (about) => {
  $("model").textContent = `${about.model} \u00b7 ${about.family}`;
  document.title = `${about.model} \u2013 Flash-MoE`;
  chat.model = about.model;
  form.elements.temperature.placeholder = String(about.sampling.temperature);
  form.elements.top_p.placeholder = String(about.sampling.top_p);
  form.elements.top_k.placeholder = String(about.sampling.top_k);
});
toggle.addEventListener("click", () => show($("engine").hidden));
show(window.matchMedia("(min-width: 861px)").matches);
engine.introduce();
