/* A qemu plugin that counts the guest's instructions and writes the count down at each getpriority(2).
 *
 * Nothing else that runs here calls getpriority, so that it marks the beginning and the end of what is counted. The
 * count is taken block by block: a block of guest code runs from its first instruction to its last. One thread only.
 *
 * The declarations are those of qemu-plugin.h (qemu 7.2, plugin API version 1), which Debian has in no package.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define AARCH64_GETPRIORITY 141
#define NO_REGISTERS 0

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t,
                                                              uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

EXPORTED int qemu_plugin_version = QEMU_PLUGIN_API;

static uint64_t num_instructions;
static FILE *marks;

static void block_runs(unsigned cpu, void *length) {
  (void)cpu;
  num_instructions += (uintptr_t)length;
}

static void block_is_translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, block_runs, NO_REGISTERS, (void *)qemu_plugin_tb_n_insns(block));
}

static void kernel_is_called(plugin_id id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                             uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == AARCH64_GETPRIORITY) {
    fprintf(marks, "%llu\n", (unsigned long long)num_instructions);
    fflush(marks);
  }
}

EXPORTED int qemu_plugin_install(plugin_id id, const void *about_qemu, int argc, char **argv) {
  (void)about_qemu;
  if (argc != 1 || strncmp(argv[0], "marks=", 6) != 0 || (marks = fopen(argv[0] + 6, "w")) == NULL) {
    return 1;
  }
  qemu_plugin_register_vcpu_tb_trans_cb(id, block_is_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, kernel_is_called);
  return 0;
}
