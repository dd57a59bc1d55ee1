/* What the system gives: files that appear whole or not at all, on file systems with nameless files and without
 * (the linker puts an open of ours in place of the system's, which refuses them on request); features of the
 * processor. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "kernels/kernels.h"
#include "os/os.h"

static bool only_names; /* the file system has no nameless files */

int __wrap_open(const char *path, int flags, ...);
int __real_open(const char *path, int flags, ...);

int __wrap_open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
    va_end(list);
    if (only_names && (flags & O_TMPFILE) == O_TMPFILE) return errno = EOPNOTSUPP, -1;
    return __real_open(path, flags, mode);
}

static void must(sl_status status, const sl_error *err) {
    if (status != SL_OK) fail_msg("%s", err->text);
}

/* Each test runs in a folder of its own, which is empty at its end. */
static int enter(void **state) {
    char *folder = strdup("test-os-XXXXXX");
    *state = folder;
    return !mkdtemp(folder) || chdir(folder);
}

static int leave(void **state) {
    bool failed = chdir("..") || rmdir(*state);
    free(*state);
    return failed;
}

/* Names in the present folder; the last of them in name. */
static size_t count_names(char name[256]) {
    size_t n = 0;
    DIR *dir = opendir(".");
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(name, 256, "%s", entry->d_name);
        n++;
    }
    closedir(dir);
    return n;
}

static void write_text(const char *path, const char *text, bool commit) {
    sl_error err;
    sl_os_out out;
    must(sl_os_out_open(&out, path, &err), &err);
    must(sl_os_out_write(&out, "?", 1, &err), &err);
    must(sl_os_out_write(&out, text + 1, strlen(text) - 1, &err), &err);
    must(sl_os_out_pwrite(&out, text, 1, 0, &err), &err);
    if (commit) must(sl_os_out_commit(&out, &err), &err);
    else sl_os_out_abort(&out);
}

static void expect_text(const char *path, const char *text) {
    sl_error err;
    char *data;
    size_t n;
    must(sl_os_read_file(path, 1000, &data, &n, &err), &err);
    assert_string_equal(data, text);
    free(data);
}

/* A new name, the same again, through a path with a folder and through a link; an abort changes nothing. */
static void check_writing(void) {
    char name[256];
    write_text("a", "first", true);
    expect_text("a", "first");
    write_text("./a", "second", true);
    expect_text("a", "second");
    write_text("a", "third", false);
    write_text("b", "third", false);
    expect_text("a", "second");
    assert_int_equal(count_names(name), 1);
    assert_int_equal(symlink("a", "link"), 0);
    write_text("link", "fourth", true);
    expect_text("a", "fourth");
    assert_int_equal(readlink("link", name, sizeof name), 1);
    assert_int_equal(unlink("link") | unlink("a"), 0);
}

static void test_nameless(void **state) {
    (void)state;
    int fd = open(".", O_TMPFILE | O_RDWR, 0666);
    if (fd < 0) {
        print_message("skipped: this file system has no nameless files\n");
        skip();
    }
    close(fd);
    char name[256];
    sl_error err;
    sl_os_out out;
    must(sl_os_out_open(&out, "a", &err), &err);
    must(sl_os_out_write(&out, "x", 1, &err), &err);
    assert_int_equal(count_names(name), 0);
    sl_os_out_abort(&out);
    check_writing();
}

static void test_named(void **state) {
    (void)state;
    char name[256];
    sl_error err;
    sl_os_out out;
    only_names = true;
    must(sl_os_out_open(&out, "a", &err), &err);
    assert_int_equal(count_names(name), 1);
    assert_non_null(strstr(name, ".tmp"));
    sl_os_out_abort(&out);
    check_writing();
    only_names = false;
}

/* Another made the name while the file was written: it is replaced, as a rename does. */
static void test_name_taken_meanwhile(void **state) {
    (void)state;
    sl_error err;
    sl_os_out out;
    must(sl_os_out_open(&out, "a", &err), &err);
    must(sl_os_out_write(&out, "mine", 4, &err), &err);
    write_text("a", "other", true);
    must(sl_os_out_commit(&out, &err), &err);
    expect_text("a", "mine");
    assert_int_equal(unlink("a"), 0);
}

/* A file that takes another's place takes its permissions. */
static void test_permissions_stay(void **state) {
    (void)state;
    struct stat now;
    for (int i = 0; i < 2; i++) {
        only_names = i;
        write_text("a", "first", true);
        assert_int_equal(chmod("a", 0600), 0);
        write_text("a", "second", true);
        assert_int_equal(stat("a", &now), 0);
        assert_int_equal(now.st_mode & 0777, 0600);
        expect_text("a", "second");
        assert_int_equal(unlink("a"), 0);
    }
    only_names = false;
}

static void test_threads_start(void **state) {
    (void)state;
    assert_int_equal(sl_os_start_threads(0), 0);
    assert_int_equal(sl_os_start_threads(20), 20);
}

/* Where the name became a folder the commit fails, says so, and leaves nothing else. */
static void test_commit_fails(void **state) {
    (void)state;
    char name[256];
    for (int i = 0; i < 2; i++) {
        sl_error err;
        sl_os_out out;
        only_names = i;
        must(sl_os_out_open(&out, "a", &err), &err);
        assert_int_equal(mkdir("a", 0777), 0);
        assert_int_equal(sl_os_out_commit(&out, &err), SL_E_IO);
        assert_non_null(strstr(err.text, "a: cannot replace"));
        sl_os_out_abort(&out);
        assert_int_equal(count_names(name), 1);
        assert_int_equal(rmdir("a"), 0);
    }
    only_names = false;
}

static void test_features(void **state) {
    (void)state;
    const char *bad = "before";
    assert_int_equal(setenv("SLUICE_CPU", "ref", 1), 0);
    assert_int_equal(sl_cpu_features_allowed(&bad), SL_CPU_REF);
    assert_null(bad);
    assert_int_equal(setenv("SLUICE_CPU", "68000", 1), 0);
    assert_int_equal(sl_cpu_features_allowed(NULL), sl_cpu_features());
    assert_int_equal(sl_cpu_features_allowed(&bad), sl_cpu_features());
    assert_string_equal(bad, "68000");
}

/* More than there is; what is touched is memory. */
static void test_unreserved_pages(void **state) {
    const uint64_t n_bytes = 4 * sl_os_memory() + (1 << 20);
    (void)state;
    assert_null(sl_os_pages_unreserved(0));
    uint8_t *p = sl_os_pages_unreserved(n_bytes);
    if (!p && sl_os_kind_of("/proc/sys/vm/overcommit_memory") == SL_OS_FILE) {
        char *mode;
        size_t n;
        sl_error err;
        must(sl_os_read_file("/proc/sys/vm/overcommit_memory", 16, &mode, &n, &err), &err);
        const bool strict = mode[0] == '2'; /* no system gives what it could not keep */
        free(mode);
        if (strict) skip();
    }
    assert_non_null(p);
    assert_int_equal(p[0] + p[n_bytes / 2] + p[n_bytes - 1], 0);
    p[0] = p[n_bytes - 1] = 1;
    assert_int_equal(p[0] + p[n_bytes - 1], 2);
    sl_os_pages_free(p, n_bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nameless, enter, leave),
        cmocka_unit_test_setup_teardown(test_named, enter, leave),
        cmocka_unit_test_setup_teardown(test_name_taken_meanwhile, enter, leave),
        cmocka_unit_test_setup_teardown(test_permissions_stay, enter, leave),
        cmocka_unit_test_setup_teardown(test_commit_fails, enter, leave),
        cmocka_unit_test(test_unreserved_pages), cmocka_unit_test(test_threads_start),
        cmocka_unit_test(test_features),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
