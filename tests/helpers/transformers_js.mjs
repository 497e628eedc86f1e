// Embeds sentences as a JavaScript program would: feature-extraction of @huggingface/transformers, mean pooling.
// standard input: {"modules": node_modules, "folder": ..., "sentences": [...], "dtypes": ["fp32", ...]}
import { readFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const { modules, folder, sentences, dtypes } = JSON.parse(readFileSync(0, "utf8"));
const { env, pipeline } = await import(pathToFileURL(join(modules, "@huggingface/transformers/dist/transformers.node.mjs")));
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);
const embeddings = {};
for (const dtype of dtypes) {
  const extractor = await pipeline("feature-extraction", basename(folder), { dtype });
  embeddings[dtype] = (await extractor(sentences, { pooling: "mean" })).tolist();
}
console.log(JSON.stringify(embeddings));
