// What the page asks the server. Every failure is an Error whose text is for the user; `status` is 0 where nothing answered.

export class Refused extends Error {
  constructor(text, status, version) {
    super(text);
    this.status = status;
    this.version = version;
  }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch {
    throw new Refused("The server does not answer.", 0);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Refused(told.error ?? `the server says ${answer.status}`, answer.status, told.version);
}

const scan = (id) => `api/scans/${encodeURIComponent(id)}`;

export const worklist = async () => (await ask("api/worklist")).json();
export const image = async (id, channel) => (await ask(`${scan(id)}/image?channel=${channel}`)).arrayBuffer();
export const uncertainty = async (id) => (await ask(`${scan(id)}/uncertainty`)).arrayBuffer();
export const atlasPicture = (id, number) => `${scan(id)}/atlases/${number}`;

export async function drawing(id, ofModel = false) {
  const answer = await ask(`${scan(id)}/drawing${ofModel ? "?of=result" : ""}`);
  const version = Number(answer.headers.get("etag").replaceAll('"', ""));
  return { voxels: new Uint8Array(await answer.arrayBuffer()), version, source: answer.headers.get("x-source") };
}

async function change(path, body, version) {
  const answer = await ask(path, { method: "PUT", body, headers: { "If-Match": `"${version}"` } });
  return (await answer.json()).version;
}

export const keep = (id, voxels, version, save) => change(`${scan(id)}/drawing${save ? "?save=true" : ""}`, voxels, version);
export const decide = (id, verdict, version) => change(`${scan(id)}/verdict`, JSON.stringify({ verdict }), version);
export const teach = (how) => ask(`api/teach/${how}`, { method: "POST" });

// XMLHttpRequest: fetch does not tell how much of a file has gone
export function drop(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", `api/dropped/${encodeURIComponent(file.name)}`);
    request.upload.onprogress = (event) => progress(event.loaded, event.total);
    request.onload = () => {
      let told = {};
      try { told = JSON.parse(request.responseText); } catch { /* no words of its own */ }
      if (request.status === 201) resolve(told.case);
      else reject(new Refused(told.error ?? `the server says ${request.status}`, request.status));
    };
    request.onerror = () => reject(new Refused("The file was not taken: the server does not answer.", 0));
    request.send(file);
  });
}
