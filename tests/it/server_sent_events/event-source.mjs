// EventSource of a browser, as far as an example needs it (WHATWG HTML, section 9.2), for a Node.js that has none.

globalThis.localStorage = {
  kept: new Map(),
  getItem(name) { return this.kept.get(name) ?? null; },
  setItem(name, value) { this.kept.set(name, value); },
};

globalThis.EventSource = class EventSource {
  static CONNECTING = 0;
  static OPEN = 1;
  static CLOSED = 2;
  readyState = 0;
  #listeners = new Map();
  #last = "";
  #retry = 3000;

  constructor(url) {
    this.#run(url);
  }

  addEventListener(name, listener) {
    this.#listeners.set(name, listener);
  }

  async #run(url) {
    for (;;) {
      this.readyState = 0;
      const headers = { accept: "text/event-stream", ...(this.#last && { "last-event-id": this.#last }) };
      try {
        const response = await fetch(url, { headers });
        if (response.status !== 200 || response.headers.get("content-type") !== "text/event-stream") {
          this.readyState = 2;
          this.onerror?.({});
          return;
        }
        this.readyState = 1;
        let text = "";
        const decoder = new TextDecoder();
        for await (const bytes of response.body) {
          text += decoder.decode(bytes, { stream: true });
          for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) this.#dispatch(text.slice(0, end));
        }
      } catch {}
      this.readyState = 0;
      this.onerror?.({});
      await new Promise((done) => setTimeout(done, this.#retry));
    }
  }

  #dispatch(block) {
    let name = "message";
    const data = [];
    for (const line of block.split("\n")) {
      const [, field, value] = line.match(/^([^:]*):? ?(.*)$/);
      if (field === "id") this.#last = value;
      if (field === "event") name = value;
      if (field === "data") data.push(value);
      if (field === "retry") this.#retry = Number(value);
    }
    if (data.length) this.#listeners.get(name)?.({ data: data.join("\n"), lastEventId: this.#last });
  }
};
