// The camera, answered for as fast as the recogniser can: one picture at a time, the newest always.

import { drawAnswer, tellAnswer } from "./card.js";
import { find, make } from "./dom.js";
import { formatNumber, say } from "./words.js";

const LONGEST_PX = 960;
const QUALITY = 0.92;
const N_STEADY = 3; // as many equal answers in a row are worth being read out
const N_PACE = 8;

const FAULTS = { NotAllowedError: "camera_refused", SecurityError: "camera_refused", NotFoundError: "camera_missing", NotReadableError: "camera_missing", OverconstrainedError: "camera_missing" };

export class Camera {
  constructor(recogniser, { onKeep, onSay, onFault }) {
    Object.assign(this, { recogniser, onKeep, onSay, onFault, stream: null, prediction: null, times: [], steady: 0, run: 0 });
    find("stop").onclick = () => this.stop({ isAsked: true });
    find("keep").onclick = () => this.#keep();
    find("cameras").onchange = ({ target }) => this.start(target.value);
    this.canvas = document.createElement("canvas");
  }

  async start(deviceId = null) {
    this.stop();
    this.run += 1;
    const run = this.run;
    if (!navigator.mediaDevices) {
      this.onFault(say("camera_insecure"));
      return;
    }
    const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: { ideal: "environment" } };
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: { ...which, width: { ideal: 1280 }, height: { ideal: 960 } } });
    } catch (error) {
      this.onFault(say(FAULTS[error.name] ?? "camera_missing"));
      return;
    }
    if (run !== this.run) {
      stream.getTracks().forEach((track) => track.stop());
      return;
    }
    this.stream = stream;
    const video = find("video");
    video.srcObject = stream;
    find("camera").hidden = false;
    find("open-camera").setAttribute("aria-expanded", "true");
    stream.getVideoTracks()[0].onended = () => this.stop();
    await video.play().catch(() => {});
    await this.#listCameras();
    find("stop").focus();
    find("camera").scrollIntoView({ block: "nearest" });
    await this.#answer(run);
  }

  stop({ isAsked = false } = {}) {
    this.run += 1;
    this.stream?.getTracks().forEach((track) => track.stop());
    Object.assign(this, { stream: null, prediction: null, times: [] });
    find("video").srcObject = null;
    find("camera").hidden = true;
    find("open-camera").setAttribute("aria-expanded", "false");
    if (isAsked) find("open-camera").focus();
  }

  draw() {
    const parts = this.prediction ? (this.prediction.answer ? drawAnswer(this.recogniser.model, this.prediction, { nBars: 3 }) : [tellAnswer(this.prediction)]) : [make("p", { className: "line waiting" }, say("working"))];
    find("live").replaceChildren(...parts.filter((part) => part !== null));
    const spanS = (this.times.at(-1) - this.times[0]) / 1000;
    const rate = this.times.length > 1 ? (this.times.length - 1) / spanS : 0;
    find("pace").textContent = rate ? say("pace", { rate: formatNumber(Number(rate.toPrecision(2))) }) : "";
  }

  async #listCameras() {
    const devices = (await navigator.mediaDevices.enumerateDevices()).filter((one) => one.kind === "videoinput");
    const now = this.stream?.getVideoTracks()[0]?.getSettings().deviceId;
    const options = devices.map((one, i) => make("option", { value: one.deviceId, selected: one.deviceId === now }, one.label || say("camera_number", { n: i + 1 })));
    find("cameras").replaceChildren(...options);
    find("cameras").hidden = devices.length < 2;
  }

  async #takePicture(type = "image/jpeg") {
    const video = find("video");
    const factor = Math.min(1, LONGEST_PX / Math.max(video.videoWidth, video.videoHeight));
    this.canvas.width = Math.round(video.videoWidth * factor);
    this.canvas.height = Math.round(video.videoHeight * factor);
    this.canvas.getContext("2d").drawImage(video, 0, 0, this.canvas.width, this.canvas.height);
    return new Promise((resolve) => this.canvas.toBlob(resolve, type, QUALITY));
  }

  async #answer(run) {
    this.draw();
    while (run === this.run) {
      await new Promise((resolve) => requestAnimationFrame(resolve)); // a hidden page draws nothing, and answers nothing
      if (run !== this.run) return;
      if (!find("video").videoWidth) continue;
      try {
        const [prediction] = await this.recogniser.predict([await this.#takePicture()], { topk: 3 });
        if (run !== this.run) return;
        this.#show({ ...prediction, file: say("camera_title") });
      } catch (error) {
        if (run === this.run) this.stop();
        this.onFault(error);
        return;
      }
    }
  }

  #show(prediction) {
    const said = prediction.answer?.label;
    this.steady = said === this.prediction?.answer?.label ? this.steady + 1 : 1;
    this.prediction = prediction;
    this.times = [...this.times, performance.now()].slice(-N_PACE);
    if (this.steady === N_STEADY) this.onSay(tellAnswer(prediction));
    this.draw();
  }

  async #keep() {
    if (!find("video").videoWidth) return;
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
    const blob = await this.#takePicture();
    this.onKeep(new File([blob], say("camera_file", { time }), { type: "image/jpeg" }));
  }
}
