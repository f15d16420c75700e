// The state of the page in its address: "#x=adapter.rank&y=training.steps". Other fragments are places.

const state = {
  read() {
    const text = decodeURI(location.hash.slice(1));
    return text.includes("=") ? Object.fromEntries(new URLSearchParams(text)) : {};
  },
  /** Change some keys; null removes one. The address changes without a step in the history. */
  write(changes) {
    const kept = new URLSearchParams(state.read());
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") kept.delete(key);
      else kept.set(key, value);
    }
    const text = kept.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  },
};

/** Remember something between visits; a page opened from a file may not be allowed to. */
const memory = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(`harness ${data.sweep} ${key}`));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`harness ${data.sweep} ${key}`, JSON.stringify(value));
    } catch {
      // Private windows and some browsers' file pages have no storage: the page works without.
    }
  },
};

function download(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
