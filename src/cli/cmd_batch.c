/* sluice batch: thousands of prompts in a file of JSON lines, many at once, restartable.
 *
 * The input is read line by line as slots become free; every finished answer is appended to the output by
 * one write. So memory does not grow with the files (16 bytes per line for the ids seen and, when resumed,
 * 24 per finished line), and whatever ends the program leaves whole lines that --resume continues from. */
#include <stdlib.h>
#include <string.h>

#include "cli/batch_io.h"
#include "cli/batch_line.h"
#include "cli/cli.h"
#include "os/append.h"
#include "os/os.h"
#include "run/job.h"
#include "run/model.h"

/* One sequence in work. */
typedef struct slot {
    sl_line line;
    sl_job job;
    sl_stop *stops; /* [job.stream.n_stop] of a line with messages, else NULL */
    bool busy;
    uint64_t n_bytes; /* of the line in the input */
} slot;

typedef struct batch {
    /* flags */
    const char *in, *out;
    int64_t n_slot;
    bool resume;
    sl_common common;
    sl_line_defaults defaults;
    sl_stop stops[64];
    /* work */
    sl_model *model;
    sl_session *session;
    sl_jobs jobs;
    slot *slots; /* [n_slot] */
    sl_reader lines;
    bool in_ended;
    sl_text_set ids;
    sl_journal journal;
    size_t n_passed; /* results of the journal whose lines were read again */
    sl_os_append file;
    sl_buf result;
    double synced; /* when the output was last forced to the disk */
    /* progress */
    uint64_t n_line, n_bad, n_prompt_token, n_answer_token; /* of finished lines */
    uint64_t in_bytes, done_bytes; /* of the input; of its finished lines, those of earlier runs too */
    double started;
    sl_progress progress;
    char progress_text[96];
} batch;

static sl_status fail_line(sl_error *err, const sl_line *line, const sl_error *why) {
    return sl_fail(err, SL_E_FORMAT, "line %s: %s", line->number, why->text);
}

/* ---- results ------------------------------------------------------------------------------------- */

static sl_status emit(batch *b, const sl_line *line, const sl_job *job, const char *error, sl_error *err) {
    static const char *const reasons[] = { "error", "stop", "length" };
    const sl_stream *stream = job ? &job->stream : NULL;
    sl_name_buf buf;
    sl_error why;
    b->result.n = 0;
    bool good = sl_result_format(&b->result, line, stream ? stream->text.data : NULL,
                                 stream ? stream->n_ready : 0,
                                 reasons[stream ? stream->finish : SL_FINISH_NONE], job ? job->n_token : 0,
                                 stream ? stream->n_token : 0, error);
    if (!good) return sl_fail(err, SL_E_MEMORY, "out of memory: the result of line %s", line->number);
    if (sl_os_append_write(&b->file, b->result.data, b->result.n, &why) != SL_OK)
        return sl_fail(err, SL_E_IO, "%s: %s", sl_name(b->out, &buf), why.text);
    b->n_line++;
    b->n_bad += error != NULL;
    if (job) b->n_prompt_token += job->n_token;
    if (stream) b->n_answer_token += stream->n_token;
    return SL_OK;
}

static sl_status emit_error(batch *b, const sl_line *line, const sl_error *why, sl_error *err) {
    sl_error text;
    fail_line(&text, line, why);
    return emit(b, line, NULL, text.text, err);
}

/* Forces results to the disk now and then; a killed program loses nothing that was written in any case. */
static sl_status sync_output(batch *b, bool at_once, sl_error *err) {
    double now = sl_os_seconds();
    if (!at_once && now - b->synced < 1) return SL_OK;
    b->synced = now;
    return sl_os_append_sync(&b->file, err);
}

/* ---- lines to jobs ------------------------------------------------------------------------------- */

/* The next line, parsed. *why says what is wrong with it (code SL_OK: nothing); running out of memory is not
 * the line's fault and fails. */
static sl_status parse_line(batch *b, sl_line *line, sl_error *why, sl_error *err) {
    const sl_reader *lines = &b->lines;
    bool added = true;
    sl_name_buf buf;
    why->code = SL_OK;
    if (lines->too_long) {
        sl_line_begin(line, lines->index);
        sl_fail(why, SL_E_FORMAT, "longer than 16 MiB");
    } else {
        sl_line_parse(line, lines->index, lines->text, lines->n, &b->defaults, why);
    }
    if (why->code == SL_E_MEMORY) return fail_line(err, line, why);
    if (line->has_id) SL_TRY(sl_text_set_add(&b->ids, sl_text_hash_of(line->id, line->n_id), &added, err));
    if (!added && why->code == SL_OK)
        sl_fail(why, SL_E_FORMAT, "the id \"%s\" was used before", sl_name_escape(line->id, line->n_id, &buf));
    return SL_OK;
}

static sl_status tokenize_messages(const batch *b, const sl_line *line, sl_job *job, sl_error *err) {
    size_t n = 0;
    SL_TRY(sl_chat_tokenize(b->model, line->messages, line->n_message, true, true, NULL, 0, &n, err));
    job->tokens = malloc((n + 1) * sizeof *job->tokens);
    if (!job->tokens) return sl_fail(err, SL_E_MEMORY, "out of memory: %zu prompt tokens", n);
    SL_TRY(sl_chat_tokenize(b->model, line->messages, line->n_message, true, true, job->tokens, n, &n, err));
    job->n_token = n;
    return SL_OK;
}

static sl_status tokenize(const batch *b, const sl_line *line, sl_job *job, sl_error *err) {
    size_t max = b->jobs.max_context;
    if (line->messages) SL_TRY(tokenize_messages(b, line, job, err));
    else SL_TRY(sl_prompt_tokens(b->model, line->prompt, line->n_prompt, &job->tokens, &job->n_token, err));
    if (max && job->n_token > max)
        return sl_fail(err, SL_E_FORMAT, "the prompt has %zu tokens, the model's context is %zu",
                       job->n_token, max);
    return SL_OK;
}

/* The stop texts of the line; the chat format's own ones join them after messages, as in chat. */
static sl_status set_stops(const batch *b, slot *s, sl_error *err) {
    const sl_line *line = &s->line;
    sl_stream *stream = &s->job.stream;
    const char *const *extra = sl_chat_stops(b->model->chat);
    stream->stops = line->stops ? line->stops : b->defaults.stops;
    stream->n_stop = line->stops ? line->n_stop : b->defaults.n_stop;
    if (!line->messages || !extra || !extra[0]) return SL_OK;
    size_t n = 0, n_own = stream->n_stop;
    while (extra[n]) n++;
    SL_TRY(sl_alloc((void **)&s->stops, n_own + n, sizeof *s->stops, "stop texts", err));
    if (n_own) memcpy(s->stops, stream->stops, n_own * sizeof *s->stops);
    for (size_t i = 0; i < n; i++) s->stops[n_own + i] = (sl_stop){ extra[i], strlen(extra[i]) };
    stream->stops = s->stops;
    stream->n_stop = n_own + n;
    return SL_OK;
}

static void free_slot(slot *s) {
    sl_job_release(&s->job);
    sl_line_release(&s->line);
    free(s->stops);
    *s = (slot){ 0 };
}

static void finish_slot(batch *b, slot *s) {
    b->done_bytes += s->n_bytes;
    free_slot(s);
}

/* A parsed line becomes the job of its slot. */
static sl_status make_job(const batch *b, slot *s, sl_error *err) {
    SL_TRY(tokenize(b, &s->line, &s->job, err));
    SL_TRY(sl_sampler_create(&s->line.sampler, b->model->n_vocab, &s->job.sampler, err));
    s->job.stream.model = b->model;
    s->job.stream.max_token = s->line.max_token;
    s->job.stream.ignore_eos = b->common.ignore_eos;
    return set_stops(b, s, err);
}

/* True if an earlier run finished this line. Lines and journal are both in the order of the input. */
static bool is_done(batch *b, uint64_t index) {
    if (b->n_passed == b->journal.n || b->journal.done[b->n_passed].index != index) return false;
    b->n_passed++;
    return true;
}

/* Reads one line into a free slot: a job to run, an error line written at once, or a line done before. */
static sl_status take_line(batch *b, size_t i, sl_error *err) {
    slot *s = &b->slots[i];
    sl_error why;
    SL_TRY(parse_line(b, &s->line, &why, err));
    s->n_bytes = b->lines.next_offset - b->lines.offset;
    if (is_done(b, s->line.index)) {
        free_slot(s);
        return SL_OK;
    }
    if (why.code == SL_OK) make_job(b, s, &why);
    if (why.code == SL_E_MEMORY) return fail_line(err, &s->line, &why);
    if (why.code != SL_OK) {
        sl_status status = emit_error(b, &s->line, &why, err);
        finish_slot(b, s);
        return status;
    }
    s->busy = true;
    sl_jobs_start(&b->jobs, i, &s->job);
    return SL_OK;
}

/* ---- the run ------------------------------------------------------------------------------------- */

/* How much of a running line is done, 0 to 1: tokens fed and drawn, of those there are if the answer takes all that
 * it may. An answer without a limit counts when it is finished. */
static double part_done(const batch *b, const sl_job *job) {
    size_t most = job->stream.max_token, context = b->jobs.max_context;
    if (context) most = sl_min(most, context + 1 - job->n_token);
    if (most == SIZE_MAX) return 0;
    return (double)(job->n_fed + job->stream.n_token) / ((double)job->n_token + (double)most);
}

static void show_progress(batch *b) {
    if (!sl_progress_due(&b->progress)) return;
    double done = (double)b->done_bytes, seconds = sl_os_seconds() - b->started;
    uint64_t n_token = b->n_prompt_token + b->n_answer_token;
    for (size_t i = 0; i < (size_t)b->n_slot; i++) {
        const slot *s = &b->slots[i];
        if (!s->busy) continue;
        n_token += s->job.n_fed + s->job.stream.n_token;
        done += (double)s->n_bytes * part_done(b, &s->job);
    }
    snprintf(b->progress_text, sizeof b->progress_text, "%llu answers, %.0f tokens/s",
             (unsigned long long)b->n_line, (double)n_token / (seconds > 0 ? seconds : 1));
    sl_progress_draw(&b->progress, b->in_bytes ? done / (double)b->in_bytes : -1, "");
}

static sl_status fill_slots(batch *b, sl_error *err) {
    for (size_t i = 0; i < (size_t)b->n_slot; i++) {
        while (!b->slots[i].busy && !b->in_ended && !sl_interrupted()) {
            bool more;
            SL_TRY(sl_reader_next(&b->lines, &more, err));
            b->in_ended = !more;
            if (more) SL_TRY(take_line(b, i, err));
            SL_TRY(sync_output(b, false, err));
            show_progress(b);
        }
    }
    return SL_OK;
}

static sl_status collect(batch *b, sl_error *err) {
    for (size_t i = 0; i < (size_t)b->n_slot; i++) {
        slot *s = &b->slots[i];
        if (!s->busy || s->job.stream.finish == SL_FINISH_NONE) continue;
        SL_TRY(emit(b, &s->line, &s->job, NULL, err));
        b->jobs.slots[i] = NULL;
        finish_slot(b, s);
    }
    return sync_output(b, false, err);
}

static sl_status run_jobs(batch *b, sl_error *err) {
    for (;;) {
        bool worked, busy = false;
        SL_TRY(fill_slots(b, err));
        if (sl_interrupted()) break;
        SL_TRY(sl_jobs_pass(&b->jobs, &worked, err));
        SL_TRY(collect(b, err));
        show_progress(b);
        for (size_t i = 0; i < (size_t)b->n_slot; i++) busy = busy || b->slots[i].busy;
        if (b->in_ended && !busy) break;
    }
    return sync_output(b, true, err);
}

/* ---- before the run ------------------------------------------------------------------------------ */

/* Every result of the journal must be of the line it says. Counts the lines, and the bytes of those with
 * results. */
static sl_status check_journal(batch *b, uint64_t *n_line, sl_error *err) {
    sl_name_buf buf;
    for (bool more;;) {
        sl_line line;
        sl_error why;
        SL_TRY(sl_reader_next(&b->lines, &more, err));
        if (!more) break;
        sl_status status = parse_line(b, &line, &why, err);
        sl_text_hash id = sl_text_hash_of(line.id, line.n_id);
        sl_line_release(&line);
        SL_TRY(status);
        const sl_done *done = b->journal.done + b->n_passed;
        if (!is_done(b, b->lines.index)) continue;
        b->done_bytes += b->lines.next_offset - b->lines.offset;
        if (done->id.low != id.low || done->id.high != id.high)
            return sl_fail(err, SL_E_FORMAT, "%s does not belong to this input: the ids of line %llu differ",
                           sl_name(b->out, &buf), (unsigned long long)b->lines.index + 1);
    }
    *n_line = b->lines.index;
    if (b->n_passed == b->journal.n) return SL_OK;
    return sl_fail(err, SL_E_FORMAT, "%s does not belong to this input: it has a result of line %llu of %llu",
                   sl_name(b->out, &buf), (unsigned long long)b->journal.done[b->n_passed].index + 1,
                   (unsigned long long)*n_line);
}

/* Reads what an earlier run left. *finished: nothing is to be done. */
static sl_status read_journal(batch *b, bool *finished, sl_error *err) {
    sl_name_buf buf;
    uint64_t n_line = 0;
    *finished = false;
    if (sl_os_kind_of(b->in) != SL_OS_FILE)
        return sl_fail(err, SL_E_IO, "%s is not a regular file, which --resume needs", sl_name(b->in, &buf));
    SL_TRY(sl_journal_read(&b->journal, b->out, err));
    if (!b->journal.n) return SL_OK;
    SL_TRY(sl_reader_open(&b->lines, b->in, SL_LINE_BYTES, err));
    SL_TRY(check_journal(b, &n_line, err));
    *finished = n_line == b->journal.n;
    sl_reader_close(&b->lines);
    sl_text_set_release(&b->ids);
    b->n_passed = 0;
    return SL_OK;
}

/* The output may be new, empty, or with --resume an earlier run's. */
static sl_status check_output(const batch *b, sl_error *err) {
    sl_name_buf buf;
    uint64_t n_bytes = 0;
    if (sl_os_kind_of(b->out) == SL_OS_FOLDER)
        return sl_fail(err, SL_E_IO, "%s is a folder, expected a file to write", sl_name(b->out, &buf));
    if (sl_os_same_file(b->in, b->out))
        return sl_fail(err, SL_E_IO, "%s is both input and output", sl_name(b->out, &buf));
    if (b->resume && sl_os_kind_of(b->out) == SL_OS_OTHER)
        return sl_fail(err, SL_E_IO, "%s is not a regular file, which --resume needs", sl_name(b->out, &buf));
    if (!b->resume && sl_os_file_bytes(b->out, &n_bytes) && n_bytes)
        return sl_fail(err, SL_E_IO, "%s has %llu bytes already, expected a new file (or --resume)",
                       sl_name(b->out, &buf), (unsigned long long)n_bytes);
    return SL_OK;
}

static sl_status open_output(batch *b, sl_error *err) {
    return sl_os_append_open(&b->file, b->out, b->journal.found_bytes, b->journal.keep_bytes, err);
}

static sl_status open_all(batch *b, sl_error *err) {
    SL_TRY(sl_alloc((void **)&b->slots, (size_t)b->n_slot, sizeof *b->slots, "slots", err));
    SL_TRY(sl_jobs_init(&b->jobs, b->model, b->session, (size_t)b->n_slot, (size_t)b->common.n_batch, err));
    sl_os_file_bytes(b->in, &b->in_bytes);
    if (b->in_bytes) b->progress.first = (double)b->done_bytes / (double)b->in_bytes;
    return open_output(b, err);
}

static void release(batch *b) {
    for (size_t i = 0; b->slots && i < (size_t)b->n_slot; i++) free_slot(&b->slots[i]);
    free(b->slots);
    sl_jobs_release(&b->jobs);
    sl_session_destroy(b->session);
    sl_model_close(b->model);
    sl_reader_close(&b->lines);
    sl_text_set_release(&b->ids);
    sl_journal_release(&b->journal);
    sl_os_append_close(&b->file);
    sl_buf_release(&b->result);
}

/* ---- the command --------------------------------------------------------------------------------- */

static int report_end(const batch *b) {
    double seconds = sl_os_seconds() - b->started;
    uint64_t n_bad = b->n_bad + b->journal.n_error, n_line = b->n_line + b->journal.n;
    sl_name_buf buf;
    if (sl_interrupted()) return SL_EXIT_INTERRUPTED;
    if (n_bad)
        return sl_report(SL_EXIT_FAILED, "%llu of %llu lines were bad; their results in %s say why",
                         (unsigned long long)n_bad, (unsigned long long)n_line, sl_name(b->out, &buf));
    sl_note("%llu lines, %llu prompt and %llu generated tokens in %.1f s (%.0f tokens/s); on %s",
            (unsigned long long)b->n_line, (unsigned long long)b->n_prompt_token,
            (unsigned long long)b->n_answer_token, seconds,
            (double)(b->n_prompt_token + b->n_answer_token) / (seconds > 0 ? seconds : 1), sl_session_device(b->session));
    return SL_EXIT_OK;
}

static int run_batch(batch *b) {
    sl_error err;
    bool finished = false;
    sl_status status = check_output(b, &err);
    if (status == SL_OK && b->resume) status = read_journal(b, &finished, &err);
    bool torn = b->journal.keep_bytes != b->journal.found_bytes;
    if (status == SL_OK && finished && torn) status = open_output(b, &err);
    if (status != SL_OK) return sl_report_error(&err);
    if (finished) {
        sl_note("nothing to do: all %zu lines have results", b->journal.n);
        return SL_EXIT_OK;
    }
    if (sl_reader_open(&b->lines, b->in, SL_LINE_BYTES, &err) != SL_OK) return sl_report_error(&err);
    if (!sl_common_open(&b->common, (size_t)b->n_slot, &b->model, &b->session)) return SL_EXIT_FAILED;
    if (!b->model->tokenizer)
        return sl_report(SL_EXIT_FAILED, "the model has no tokenizer, which batch needs for its prompts");
    sl_interrupt_install();
    b->started = b->synced = sl_os_seconds();
    sl_progress_begin(&b->progress, b->progress_text, NULL);
    status = open_all(b, &err);
    if (status == SL_OK) status = run_jobs(b, &err);
    sl_progress_end(&b->progress);
    if (status != SL_OK && !sl_interrupted()) return sl_report_error(&err);
    return report_end(b);
}

static int run(int argc, char **argv) {
    batch b = { .n_slot = 8 };
    sl_arg args[24] = {
        { "-i, --input", "IN.jsonl", SL_ARG_TEXT, &b.in, 0, 0,
          "one JSON object per line: prompt or messages", NULL },
        { "-o, --output", "OUT.jsonl", SL_ARG_TEXT, &b.out, 0, 0,
          "results, one line each, as they finish", NULL },
        { "--parallel", "N", SL_ARG_INT, &b.n_slot, 1, 4096, "sequences at once (8)", NULL },
        { "--resume", NULL, SL_ARG_FLAG, &b.resume, 0, 0, "continue a run that was ended", NULL },
    };
    sl_common_init(&b.common);
    size_t n_arg = sl_common_args(&b.common, true, args, 4);
    int code = sl_args_parse(argc, argv, &sl_cmd_batch, args, n_arg, NULL, 0, 0, NULL);
    if (code >= 0) return code;
    if (!b.in || !b.out)
        return sl_report(SL_EXIT_MISUSE, "batch: no %s given (expected -i IN.jsonl and -o OUT.jsonl)",
                         b.in ? "-o" : "-i");
    b.defaults.sampler = sl_common_sampler(&b.common);
    b.defaults.max_token = sl_common_max_token(&b.common);
    b.defaults.stops = b.stops;
    b.defaults.n_stop = sl_common_stops(&b.common, b.stops);
    b.file.fd = -1;
    code = run_batch(&b);
    release(&b);
    return code;
}

const sl_command sl_cmd_batch = {
    "batch",
    "sluice batch -i IN.jsonl -o OUT.jsonl [flags]",
    "answer every line of a JSONL file, many at once, restartable",
    run,
};
