/* Drawing on a device: what a sampler would do with its next logits, as numbers that a kernel can follow. */
#ifndef SL_RUN_SAMPLER_H
#define SL_RUN_SAMPLER_H

#include "kernels/draw.h"
#include "sluice.h"

/* The n_vocab that it was created for. */
size_t sl_sampler_vocabulary(const sl_sampler *sampler);
/* Fills *out for the next token and moves the random numbers on as sl_sampler_sample would. False where the settings are
 * not for a device (more than SL_SAMPLE_MAX_K candidates, more than SL_SAMPLE_MAX_WINDOW ids to penalise): then nothing
 * has changed. */
bool sl_sampler_draw(sl_sampler *sampler, sl_draw *out);
/* Takes back the latest sl_sampler_draw that was true: the sampler is as before it. */
void sl_sampler_undraw(sl_sampler *sampler);

#endif
