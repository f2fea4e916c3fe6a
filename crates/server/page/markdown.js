// A little Markdown, made of nodes: nothing that a model writes becomes markup by itself.

// Nodes of a line: code, bold, emphasis, and the rest as it is.
function inline(text) {
  const nodes = [];
  const pattern = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])/g;
  let at = 0;
  for (const match of text.matchAll(pattern)) {
    nodes.push(text.slice(at, match.index));
    const [tag, inner] = match[1] ? ["code", match[1]] : match[2] ? ["strong", match[2]] : ["em", match[3]];
    const node = document.createElement(tag);
    node.textContent = inner;
    nodes.push(node);
    at = match.index + match[0].length;
  }
  nodes.push(text.slice(at));
  return nodes.filter((node) => node !== "");
}

function make(tag, children) {
  const node = document.createElement(tag);
  node.append(...children);
  return node;
}

// Nodes of a text: paragraphs, headings, lists, and blocks of code, also one that is not closed yet.
export function markdown(text) {
  const nodes = [];
  const lines = text.split("\n");
  let at = 0;
  const take = (test) => {
    const taken = [];
    while (at < lines.length && test(lines[at])) taken.push(lines[at++]);
    return taken;
  };
  const item = /^\s*(?:[-*+]|(\d+)[.)])\s+/;
  const isPlain = (line) => line.trim() && !/^(```|#{1,6} )/.test(line) && !item.test(line);
  while (at < lines.length) {
    const line = lines[at];
    if (!line.trim()) {
      at += 1;
    } else if (line.startsWith("```")) {
      at += 1;
      const code = take((inner) => !inner.startsWith("```"));
      at += 1;
      const node = make("code", [code.join("\n")]);
      const block = make("pre", [node]);
      block.tabIndex = 0;
      nodes.push(block);
    } else if (/^#{1,6} /.test(line)) {
      at += 1;
      nodes.push(make("h3", inline(line.replace(/^#+ /, ""))));
    } else if (item.test(line)) {
      const first = item.exec(line)[1];
      const items = take((inner) => item.test(inner)).map((inner) => make("li", inline(inner.replace(item, ""))));
      const list = make(first ? "ol" : "ul", items);
      if (first) list.start = Number(first);
      nodes.push(list);
    } else {
      const plain = take(isPlain).flatMap((inner, index) => [...(index ? [document.createElement("br")] : []), ...inline(inner)]);
      nodes.push(make("p", plain));
    }
  }
  return nodes;
}
