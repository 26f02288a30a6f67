// The scan, its label and its uncertainty on NiiVue's canvas. The drawing's voxels are those the server sent, index by index.

const { Niivue, SLICE_TYPE, SHOW_RENDER } = globalThis.niivue;
// Okabe and Ito's palette, as in review.css
export const COLOURS = ["#e69f00", "#56b4e9", "#cc79a7", "#009e73", "#f0e442", "#d55e00", "#0072b2"];
const VIEWS = { all: SLICE_TYPE.MULTIPLANAR, axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL, render: SLICE_TYPE.RENDER };
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

export class Viewer {
  constructor() {
    this.nv = new Niivue({
      dragAndDropEnabled: false, viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "", loadingText: "", logLevel: "error",
      backColor: [0, 0, 0, 1], crosshairColor: [0.94, 0.89, 0.26, 0.8], crosshairWidth: 0.2, crosshairWidthUnit: "percent", isNearestInterpolation: true,
      multiplanarShowRender: SHOW_RENDER.ALWAYS, isRadiologicalConvention: true, maxDrawUndoBitmaps: 32, textHeight: 0.04,
    });
    this.size = 3;
    this.tool = "look";
    this.pen = 1;
    this.strokes = 0; // that can be taken back: NiiVue's own list goes round
    this.opacity = 0.55;
  }

  async attach(canvas, moved) {
    await this.nv.attachToCanvas(canvas);
    this.nv.onDrawingChanged = (action) => { if (action === "draw") this.strokes = Math.min(this.strokes + 1, 31); };
    this.nv.onLocationChange = (where) => moved(where.vox.map(Math.round), where.values?.[0]?.value);
  }

  colours(count) {
    const all = Array.from({ length: count }, (_, i) => rgb(COLOURS[i % COLOURS.length]));
    const of = (part) => [0, ...all.map((one) => one[part])];
    this.nv.setDrawColormap({ R: of(0), G: of(1), B: of(2), A: [0, ...all.map(() => 255)], labels: ["", ...all.map((_, i) => `${i + 1}`)] });
  }

  async show(image, voxels) {
    this.close();
    await this.nv.loadFromArrayBuffer(image, "scan.nii");
    this.window(this.nv.volumes[0]);
    this.nv.opts.drawingEnabled = true;
    this.nv.createEmptyDrawing();
    this.put(voxels, true);
    this.nv.setDrawOpacity(this.opacity);
    this.use(this.tool);
    this.toMiddle(voxels);
  }

  // black and white are the 1st and the 99.5th percentile: the bright rim near a coil hides nothing
  window(volume) {
    const step = Math.max(1, Math.floor(volume.img.length / 50000));
    const some = Float32Array.from({ length: Math.floor(volume.img.length / step) }, (_, i) => volume.img[i * step]).sort();
    const at = (share) => some[Math.floor(share * (some.length - 1))];
    if (at(0.995) > at(0.01)) [volume.cal_min, volume.cal_max] = [at(0.01), at(0.995)];
    this.nv.updateGLVolume();
  }

  close() {
    this.nv.closeDrawing();
    for (const volume of [...this.nv.volumes].reverse()) this.nv.removeVolume(volume);
  }

  get place() { return [...this.nv.scene.crosshairPos]; }
  set place(where) { this.nv.scene.crosshairPos = where; this.nv.drawScene(); }
  get voxels() { return this.nv.drawBitmap; }

  // fresh: the first stroke that can be taken back comes after this
  put(voxels, fresh = false) {
    if (this.nv.drawBitmap.length !== voxels.length) throw new Error("the label has another size than the scan");
    this.nv.drawBitmap.set(voxels);
    if (fresh) this.nv.drawClearAllUndoBitmaps();
    this.strokes = fresh ? 0 : Math.min(this.strokes + 1, 31);
    this.nv.drawAddUndoBitmap();
    this.nv.refreshDrawing(true);
  }

  // the cross goes to the slice that has most of the label
  toMiddle(voxels) {
    const [, nx, ny, nz] = this.nv.volumes[0].dimsRAS;
    const sums = [new Float64Array(nx), new Float64Array(ny), new Float64Array(nz)];
    for (let z = 0, at = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, at++) if (voxels[at]) { sums[0][x]++; sums[1][y]++; sums[2][z]++; }
    if (!sums[2].some(Boolean)) return;
    const best = (all) => (all.indexOf(Math.max(...all)) + 0.5) / all.length;
    this.nv.scene.crosshairPos = sums.map(best);
    this.nv.createOnLocationChange();
    this.nv.drawScene();
  }

  async overlay(map) {
    await this.nv.loadFromArrayBuffer(map, "uncertainty.nii");
    const volume = this.nv.volumes.at(-1);
    [volume.cal_min, volume.cal_max] = [0.1, 0.8];
    volume.colormap = "viridis";
    volume.colormapType = 2; // below the window nothing is shown
    this.nv.updateGLVolume();
  }

  get hasOverlay() { return this.nv.volumes.length > 1; }
  fade(share) { if (this.hasOverlay) this.nv.setOpacity(1, share); }

  use(tool) {
    this.tool = tool;
    this.nv.opts.penSize = tool === "fill" ? 1 : this.size;
    this.nv.opts.drawingEnabled = tool !== "look";
    this.nv.setPenValue(tool === "erase" ? 0 : this.pen, tool === "fill");
  }

  look(view) { this.nv.setSliceType(VIEWS[view]); }
  dim(opacity) { this.opacity = opacity; this.nv.setDrawOpacity(opacity); }
  undo() { if (this.strokes > 0) { this.strokes--; this.nv.drawUndo(); } }
  step(x, y, z) { this.nv.moveCrosshairInVox(x, y, z); }
}

// a number that changes with every voxel, to see whether there is something to keep
export function fingerprint(voxels) {
  let hash = 2166136261;
  const words = new Uint32Array(voxels.buffer, voxels.byteOffset, voxels.length >> 2);
  for (let i = 0; i < words.length; i++) hash = Math.imul(hash ^ words[i], 16777619);
  for (let i = words.length << 2; i < voxels.length; i++) hash = Math.imul(hash ^ voxels[i], 16777619);
  return hash;
}
