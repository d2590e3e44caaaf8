#include "bundle.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fail.h"
#include "file.h"
#include "sha256.h"

static const double schema_version = 1;
static const char golden_file[] = "golden.npz";

static const Json *read_manifest(const char *folder) {
  char *path = path_in(folder, "bundle.json");
  Bytes content;
  const char *problem = NULL;
  const int error = read_file(path, &content);
  if (error != 0) fail(EXIT_DAMAGED, "%s cannot be read: %s", path, strerror(error));
  const Json *manifest = json_read((const char *)content.data, content.size, &problem);
  if (manifest == NULL) fail(EXIT_DAMAGED, "%s cannot be read: %s", path, problem);
  if (json_number(manifest, "schema_version") != schema_version) {
    fail(EXIT_DAMAGED, "bundle.json has schema version %s, this tool reads %g",
         json_member(manifest, "schema_version", JSON_NUMBER)->text, schema_version);
  }
  return manifest;
}

/* bundle.json states its own hash, over everything in it but that statement. */
static void check_digest(const Json *manifest) {
  Text text = {NULL, 0, 0};
  char digest[65];
  json_write(&text, manifest, "digest");
  text_add(&text, "\n");
  sha256_hex(text.data, text.length, digest);
  free(text.data);
  if (strcmp(digest, json_string(manifest, "digest")) != 0) fail(EXIT_DAMAGED, "bundle.json was changed after it was built");
}

static int is_outside(const char *name) {
  if (name[0] == '/') return 1;
  for (const char *part = name; *part != '\0'; part += strspn(part, "/\\")) {
    const size_t length = strcspn(part, "/\\");
    if (length == 2 && part[0] == '.' && part[1] == '.') return 1;
    part += length;
  }
  return 0;
}

/* Checks one file, and returns its content. */
static Bytes read_listed(const char *folder, const Json *facts) {
  const char *name = facts->key;
  Bytes content;
  char digest[65];
  if (is_outside(name)) fail(EXIT_DAMAGED, "bundle.json names a file outside the bundle: %s", name);
  char *path = path_in(folder, name);
  const int error = read_file(path, &content);
  if (error != 0) fail(EXIT_DAMAGED, "%s is missing: %s", name, strerror(error));
  free(path);
  sha256_hex(content.data, content.size, digest);
  if ((double)content.size != json_number(facts, "size_bytes") || strcmp(digest, json_string(facts, "sha256")) != 0) {
    fail(EXIT_DAMAGED, "%s is not the file that was built: its SHA-256 differs from bundle.json", name);
  }
  return content;
}

static Bytes check_files(const char *folder, const Json *manifest) {
  const Json *files = json_member(manifest, "files", JSON_OBJECT);
  const char *needed[] = {json_string(json_member(manifest, "model", JSON_OBJECT), "file"), golden_file};
  Bytes golden = {NULL, 0};
  for (size_t i = 0; i < 2; i++) {
    if (json_find(files, needed[i]) == NULL) fail(EXIT_DAMAGED, "bundle.json does not list %s", needed[i]);
  }
  for (size_t i = 0; i < files->count; i++) {
    const Bytes content = read_listed(folder, &files->items[i]);
    if (strcmp(files->items[i].key, golden_file) == 0) {
      golden = content;
    } else {
      free(content.data);
    }
  }
  return golden;
}

Bundle bundle_read(const char *folder) {
  Bundle bundle = {.folder = folder, .manifest = read_manifest(folder)};
  check_digest(bundle.manifest);
  const Bytes golden = check_files(folder, bundle.manifest);
  bundle.inputs = json_member(bundle.manifest, "inputs", JSON_ARRAY);
  bundle.outputs = json_member(bundle.manifest, "outputs", JSON_ARRAY);
  bundle.limits = json_member(bundle.manifest, "limits", JSON_OBJECT);
  bundle.golden = npz_read(&golden, golden_file);
  bundle.names = npz_find(&bundle.golden, "names", "");
  bundle.labels = npz_find(&bundle.golden, "labels", "");
  if (bundle.names == NULL || bundle.names->rank != 1) fail(EXIT_DAMAGED, "%s has no names", golden_file);
  bundle.num_samples = bundle.names->num_items;
  if (bundle.num_samples == 0) fail(EXIT_DAMAGED, "%s has no samples, and a verdict on nothing would be a yes", golden_file);
  if (bundle.labels != NULL && (bundle.labels->num_items != bundle.num_samples || !array_is_integer(bundle.labels))) {
    fail(EXIT_DAMAGED, "%s has no label for each sample", golden_file);
  }
  return bundle;
}

const Array *bundle_golden(const Bundle *bundle, const char *prefix, const char *name) {
  const Array *array = npz_find(&bundle->golden, prefix, name);
  if (array == NULL) fail(EXIT_DAMAGED, "%s has no %s/%s", golden_file, prefix, name);
  if (array->rank == 0 || array->shape[0] != bundle->num_samples || array->num_items == 0 || array->dtype == DTYPE_TEXT) {
    fail(EXIT_DAMAGED, "%s: %s/%s is not one array of numbers for each sample", golden_file, prefix, name);
  }
  return array;
}

const char *bundle_sample_name(const Bundle *bundle, size_t sample) {
  const char *name = array_text(bundle->names, sample);
  if (name == NULL) fail(EXIT_DAMAGED, "%s: the name of sample %zu is no text", golden_file, sample);
  return name;
}
