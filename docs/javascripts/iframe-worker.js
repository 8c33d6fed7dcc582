/* Search from the disk: browsers start no Worker for file:// pages, so the search's script runs in a hidden frame.
   The theme's offline plugin leaves out a script from a CDN because this file is named as that one. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #ready;

    constructor(url) {
      super();
      this.#frame.hidden = true;
      this.#frame.srcdoc = "<body></body>";
      this.#ready = new Promise((loaded) => this.#frame.addEventListener("load", loaded, { once: true }))
        .then(() => this.#run(new URL(url, location.href).href));
      document.documentElement.append(this.#frame);
    }

    #run(address) {
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => this.#say("message", window.structuredClone(data));
      const script = Object.assign(inside.document.createElement("script"), { src: address });
      script.onerror = () => this.#say("error", `${address} could not be loaded`);
      return new Promise((loaded) => {
        script.onload = loaded;
        inside.document.body.append(script);
      });
    }

    #say(type, data) {
      const event = new MessageEvent(type, { data });
      this[`on${type}`]?.(event);
      this.dispatchEvent(event);
    }

    async postMessage(data) {
      const copy = window.structuredClone(data); // as a Worker does: what is sent may be changed on either side
      await this.#ready;
      const inside = this.#frame.contentWindow;
      inside?.dispatchEvent(new inside.MessageEvent("message", { data: copy }));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
