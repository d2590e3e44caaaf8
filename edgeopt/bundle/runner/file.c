#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fail.h"

static int read_all(int descriptor, Bytes *content) {
  size_t done = 0;
  while (done < content->size) {
    const ssize_t count = read(descriptor, content->data + done, content->size - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : EIO; /* shorter than it was a moment ago */
    done += (size_t)count;
  }
  return 0;
}

int read_file(const char *path, Bytes *content) {
  const int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe in its place must not hang us */
  struct stat facts;
  int problem = 0;
  if (descriptor < 0) return errno;
  if (fstat(descriptor, &facts) != 0) {
    problem = errno;
  } else if (!S_ISREG(facts.st_mode)) {
    problem = S_ISDIR(facts.st_mode) ? EISDIR : EINVAL;
  } else if ((uintmax_t)facts.st_size >= SIZE_MAX) {
    problem = EFBIG;
  } else {
    content->size = (size_t)facts.st_size;
    content->data = allocate(content->size + 1, 1);
    problem = read_all(descriptor, content);
  }
  close(descriptor);
  return problem;
}

char *path_in(const char *folder, const char *name) {
  const size_t length = strlen(folder);
  char *path = allocate(length + strlen(name) + 2, 1);
  memcpy(path, folder, length);
  path[length] = '/';
  strcpy(path + length + 1, name);
  return path;
}
