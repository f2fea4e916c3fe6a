// The conversation: sends it whole, shows the answer as it comes.
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// Server-sent events of a response: [name, data] each, and comments as [":", text].
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "", data = "";
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data += line.slice(6);
        else if (line.startsWith(": ")) yield [":", line.slice(2)];
      }
      if (data) yield [name, data];
    }
  }
}

// One answer on the page.
class Answer {
  constructor(log) {
    this.message = { role: "assistant", content: "" };
    this.node = element("article", "turn assistant");
    this.node.setAttribute("aria-label", "Answer");
    this.thoughts = element("details");
    this.thoughts.hidden = true;
    this.thoughts.append(element("summary", "", "Thinking\u2026"), element("div"));
    this.text = element("div", "text busy");
    this.calls = element("div");
    this.meta = element("p", "meta");
    this.node.append(this.thoughts, this.text, this.calls, this.meta);
    log.append(this.node);
    this.begun = performance.now();
  }

  add(delta) {
    const { message } = this;
    if (delta.reasoning_content) {
      message.reasoning_content = (message.reasoning_content ?? "") + delta.reasoning_content;
      this.thoughts.hidden = false;
      this.thoughts.lastChild.textContent = message.reasoning_content.trim();
    }
    if (delta.content) message.content += delta.content;
    for (const call of delta.tool_calls ?? []) {
      message.tool_calls ??= [];
      if (call.id) {
        message.tool_calls[call.index] = { id: call.id, type: "function", function: { name: call.function.name, arguments: "" } };
      } else {
        message.tool_calls[call.index].function.arguments += call.function.arguments;
      }
      this.showCall(call.index);
    }
    if (delta.content || delta.tool_calls) this.thoughts.firstChild.textContent = "Thoughts";
    this.dirty = true;
  }

  showCall(index) {
    const { name, arguments: json } = this.message.tool_calls[index].function;
    let card = this.calls.children[index];
    if (!card) {
      card = element("div", "call");
      card.append(element("p"), element("pre"));
      card.firstChild.append("calls ", element("b", "", name));
      this.calls.append(card);
    }
    card.lastChild.textContent = pretty(json);
  }

  // Drawn once a frame, however many pieces came.
  draw() {
    if (!this.dirty) return;
    this.dirty = false;
    this.text.replaceChildren(...markdown(this.message.content.trim()));
  }

  end(note) {
    this.draw();
    this.text.classList.remove("busy");
    if (!this.message.content.trim()) this.text.hidden = true;
    this.thoughts.firstChild.textContent = "Thoughts";
    this.meta.textContent = note;
  }
}

function pretty(json) {
  try { return JSON.stringify(JSON.parse(json), null, 2); } catch { return json; }
}

export class Chat {
  constructor({ parameters, headers, askKey }) {
    Object.assign(this, { parameters, headers, askKey, messages: [], model: "", abort: null });
    this.log = $("log");
    this.welcome = $("welcome");
    this.input = $("input");
    $("composer").addEventListener("submit", (event) => { event.preventDefault(); this.abort ? this.stop() : this.say(this.input.value); });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.abort) this.say(this.input.value);
      }
    });
    this.input.addEventListener("input", () => this.fit());
    document.addEventListener("keydown", (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop(); });
    for (const idea of this.welcome.querySelectorAll("button")) idea.addEventListener("click", () => this.say(idea.textContent));
  }

  fit() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  reset() {
    this.stop();
    this.messages = [];
    this.log.replaceChildren(this.welcome);
    this.status("");
    this.input.focus();
  }

  stop() { this.abort?.abort(); }
  status(text) { $("status").textContent = text; }

  say(text) {
    if (!text.trim() || this.abort) return;
    // Calls must have their results before anything else is said.
    if (this.messages.at(-1)?.tool_calls) { this.status("The tools' results come first."); return; }
    this.input.value = "";
    this.fit();
    this.welcome.remove();
    const turn = element("article", "turn user");
    turn.setAttribute("aria-label", "You");
    turn.append(element("div", "text", text.trim()));
    this.log.append(turn);
    this.messages.push({ role: "user", content: text.trim() });
    this.answer();
  }

  async answer() {
    const abort = this.abort = new AbortController();
    const messages = this.messages;
    const send = $("send");
    send.textContent = "Stop";
    const answer = new Answer(this.log);
    this.follow(true);
    let finish = "", tokens = 0, first = 0, usage = null, drawing = true;
    const frame = () => { answer.draw(); this.follow(); if (drawing) requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
    try {
      const { system, request } = this.parameters();
      const all = system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
      const body = { model: this.model, messages: all, stream: true, stream_options: { include_usage: true }, ...request };
      this.status("Waiting for a turn\u2026");
      const response = await fetch("/v1/chat/completions", {
        method: "POST", signal: abort.signal, body: JSON.stringify(body),
        headers: { "content-type": "application/json", ...this.headers() },
      });
      if (response.status === 401) this.askKey();
      if (!response.ok) throw new Error((await response.json()).error.message);
      for await (const [name, data] of events(response)) {
        if (name === ":") {
          const [word, done, total] = data.split(" ");
          if (word === "reading") this.status(`Reading the conversation: ${done} of ${total} tokens`);
          continue;
        }
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        if (chunk.usage) usage = chunk.usage;
        const choice = chunk.choices[0];
        if (!choice) continue;
        if (choice.finish_reason) finish = choice.finish_reason;
        const { delta } = choice;
        if (delta.content || delta.reasoning_content || delta.tool_calls) {
          tokens += 1;
          if (!first) { first = performance.now(); this.status("Writing\u2026"); }
        }
        answer.add(delta);
      }
    } catch (error) {
      if (error.name === "AbortError") finish = "stopped";
      else answer.node.append(element("p", "error", error.message));
    }
    drawing = false;
    answer.end(note(answer, { finish, first, usage, tokens }));
    this.abort = null;
    send.textContent = "Send";
    this.status("");
    if (messages === this.messages) {
      // Half a call cannot be sent back.
      if (finish !== "tool_calls") delete answer.message.tool_calls;
      if (answer.message.content || answer.message.tool_calls) messages.push(answer.message);
      if (finish === "tool_calls") this.askResults(answer);
    }
    this.follow();
  }

  // Fields for what the tools gave; the answer goes on with it.
  askResults(answer) {
    const fields = answer.message.tool_calls.map((call, index) => {
      const field = element("textarea");
      field.rows = 2;
      field.placeholder = `What ${call.function.name} gives back`;
      field.setAttribute("aria-label", field.placeholder);
      answer.calls.children[index].append(field);
      return field;
    });
    const button = element("button", "main results", "Go on");
    button.type = "button";
    button.addEventListener("click", () => {
      if (this.abort) return;
      fields.forEach((field, index) => {
        field.readOnly = true;
        this.messages.push({ role: "tool", tool_call_id: answer.message.tool_calls[index].id, content: field.value });
      });
      button.remove();
      this.answer();
    });
    answer.calls.append(button);
    fields[0].focus();
  }

  // Stays at the end, unless the reader has scrolled up.
  follow(force) {
    const { log } = this;
    if (force || log.scrollHeight - log.scrollTop - log.clientHeight < 90) log.scrollTop = log.scrollHeight;
  }
}

function note(answer, { finish, first, usage, tokens }) {
  const parts = [];
  const n = usage?.completion_tokens ?? tokens;
  const seconds = first ? (performance.now() - first) / 1000 : 0;
  if (n) parts.push(`${n} tokens`);
  if (n > 1 && seconds > 0) parts.push(`${((n - 1) / seconds).toFixed(1)} tokens/s`);
  if (first) parts.push(`first after ${((first - answer.begun) / 1000).toFixed(2)} s`);
  if (usage?.prompt_tokens_details?.cached_tokens) parts.push(`${usage.prompt_tokens_details.cached_tokens} of ${usage.prompt_tokens} read before`);
  if (finish === "length") parts.push("cut at the limit of tokens");
  if (finish === "stopped") parts.push("stopped");
  return parts.join(" \u00b7 ");
}
