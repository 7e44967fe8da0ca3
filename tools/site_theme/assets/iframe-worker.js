// A web worker where there is no server: browsers refuse `new Worker` for pages of the file system. The worker's script
// runs in a hidden frame instead, which shares the page's origin, and messages go through the two windows.
// The search of Material for MkDocs asks whether `IFrameWorker` is there, by this name.
"use strict";

class IFrameWorker extends EventTarget {
  constructor(url) {
    super();
    this.onmessage = null;
    this.waiting = [];
    this.frame = document.createElement("iframe");
    this.frame.hidden = true;
    document.body.appendChild(this.frame);
    const inside = this.frame.contentWindow;
    // What a script calls in a worker: answers go to this object, and further scripts are loaded one after another.
    inside.postMessage = (data) => this.answer(data);
    inside.importScripts = (...urls) =>
      urls.reduce((before, each) => before.then(() => this.load(each)), Promise.resolve());
    this.inside = inside;
    this.load(url).then(() => {
      const waiting = this.waiting;
      this.waiting = null;
      waiting.forEach((data) => this.tell(data));
    });
  }

  load(url) {
    return new Promise((resolve, reject) => {
      const script = this.inside.document.createElement("script");
      script.src = url;
      script.onload = () => resolve();
      script.onerror = () => reject(new Error(`${url}: the script could not be loaded.`));
      this.inside.document.body.appendChild(script);
    });
  }

  answer(data) {
    const event = new MessageEvent("message", { data });
    this.dispatchEvent(event);
    if (this.onmessage) this.onmessage(event);
  }

  tell(data) {
    this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
  }

  postMessage(data) {
    if (this.waiting) this.waiting.push(data);
    else this.tell(data);
  }

  terminate() {
    this.frame.remove();
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker;
  window.Worker = IFrameWorker;
}
