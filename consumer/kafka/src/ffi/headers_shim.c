/* Reads the header block of a consumed record in place, and the state behind it which no public call gives.
 *
 * librdkafka keeps the block as the broker sent it, but provides no public access: rd_kafka_message_headers() parses and
 * copies every header, which halves the throughput. This file is compiled against the internal headers of the linked
 * librdkafka; `raw.rs` compares both ways on the first records of each assignment. */
#include "rdkafka_int.h"
#include "rdkafka_buf.h"
#include "rdkafka_msg.h"
#include "rdkafka_op.h"
#include "rdkafka_partition.h"
#include "rdkafka_topic.h"

#include <stddef.h>

_Static_assert(offsetof(rd_kafka_msg_t, rkm_rkmessage) == 0,
               "a consumed rd_kafka_message_t is the first field of its rd_kafka_msg_t");
_Static_assert(sizeof(((rd_kafka_msg_t *)0)->rkm_u.consumer.binhdrs) ==
                   sizeof(rd_kafkap_bytes_t),
               "the header block is kept as protocol bytes");

/* A topic's state in the client's metadata; librdkafka provides no public access to its id. Returns 0 while the state is
 * unknown, 1 if the topic exists, 2 if it does not exist or may not be described. */
int sluicegate_topic_state(const rd_kafka_topic_t *app_topic, int64_t *high,
                           int64_t *low, int32_t *partitions) {
        rd_kafka_topic_t *topic =
            rd_kafka_topic_proper((rd_kafka_topic_t *)app_topic);
        int state;

        rd_kafka_topic_rdlock(topic);
        state = topic->rkt_state == RD_KAFKA_TOPIC_S_UNKNOWN  ? 0
                : topic->rkt_state == RD_KAFKA_TOPIC_S_EXISTS ? 1
                                                              : 2;
        *high       = topic->rkt_topic_id.most_significant_bits;
        *low        = topic->rkt_topic_id.least_significant_bits;
        *partitions = topic->rkt_partition_cnt;
        rd_kafka_topic_rdunlock(topic);
        return state;
}

/* The leader of a partition according to the client's metadata, -1 if there is none. */
int32_t sluicegate_leader(const rd_kafka_topic_t *app_topic, int32_t partition) {
        rd_kafka_topic_t *topic =
            rd_kafka_topic_proper((rd_kafka_topic_t *)app_topic);
        rd_kafka_toppar_t *toppar;
        int32_t leader = -1;

        rd_kafka_topic_rdlock(topic);
        toppar = rd_kafka_toppar_get(topic, partition, 0);
        rd_kafka_topic_rdunlock(topic);
        if (toppar) {
                rd_kafka_toppar_lock(toppar);
                leader = toppar->rktp_leader_id;
                rd_kafka_toppar_unlock(toppar);
                rd_kafka_toppar_destroy(toppar);
        }
        return leader;
}

/* The error of a partition's last fetch, 0 if it succeeded or there was none. librdkafka reports a refusal once, and never
 * that it has ended. */
int sluicegate_fetch_error(const rd_kafka_topic_t *app_topic,
                           int32_t partition) {
        rd_kafka_topic_t *topic =
            rd_kafka_topic_proper((rd_kafka_topic_t *)app_topic);
        rd_kafka_toppar_t *toppar;
        int error = 0;

        rd_kafka_topic_rdlock(topic);
        toppar = rd_kafka_toppar_get(topic, partition, 0);
        rd_kafka_topic_rdunlock(topic);
        if (toppar) {
                rd_kafka_toppar_lock(toppar);
                error = (int)toppar->rktp_last_error;
                rd_kafka_toppar_unlock(toppar);
                rd_kafka_toppar_destroy(toppar);
        }
        return error;
}

static rd_kafka_op_res_t find_coordinators_again(rd_kafka_t *client,
                                                 rd_kafka_q_t *queue,
                                                 rd_kafka_op_t *op) {
        rd_kafka_broker_t *any;
        (void)queue;
        (void)op;
        rd_kafka_coord_cache_destroy(&client->rk_coord_cache);
        rd_kafka_rdlock(client);
        any = TAILQ_FIRST(&client->rk_brokers);
        if (any)
                rd_kafka_broker_keep(any);
        rd_kafka_rdunlock(client);
        if (any) {
                /* Advances all requests that wait for a coordinator, whatever the broker. */
                rd_kafka_coord_rkb_monitor_cb(any);
                rd_kafka_broker_destroy(any);
        }
        return RD_KAFKA_OP_RES_HANDLED;
}

/* Requests about groups that wait, and later ones, ask which broker coordinates the group. librdkafka keeps the answer for as
 * long as it is in use, even if that broker answers that it is not the coordinator, or has left the cluster: a request then waits
 * for a connection that is not made. Its own thread does this, before the requests that are made after this call. */
void sluicegate_find_coordinators_again(rd_kafka_t *client) {
        rd_kafka_q_enq(client->rk_ops,
                       rd_kafka_op_new_cb(client, RD_KAFKA_OP_COORD_QUERY,
                                          find_coordinators_again));
}

/* Whether the loaded library is the one whose headers this was compiled with. */
int sluicegate_headers_shim_fits(void) {
        return rd_kafka_version() == RD_KAFKA_VERSION;
}

/* The block's length, 0 if there is none; *block is valid as long as the message. */
size_t sluicegate_header_block(const rd_kafka_message_t *message,
                               const void **block) {
        const rd_kafka_msg_t *rkm = (const rd_kafka_msg_t *)message;
        const rd_kafkap_bytes_t *headers = &rkm->rkm_u.consumer.binhdrs;

        /* The block of a record without headers contains only the count 0. */
        if (rkm->rkm_flags & RD_KAFKA_MSG_F_PRODUCER || headers->len <= 0 ||
            *(const char *)headers->data == 0) {
                *block = NULL;
                return 0;
        }
        *block = headers->data;
        return (size_t)headers->len;
}

/* The record's share of the fetch buffer that it keeps alive together with all other records of it, including those that
 * are still queued: the shares of one buffer add up to its size. */
size_t sluicegate_buffer_share(const rd_kafka_message_t *message) {
        const rd_kafka_op_t *op = (const rd_kafka_op_t *)message->_private;
        rd_kafka_buf_t *buffer;
        int records;

        if (!op || (op->rko_type & ~RD_KAFKA_OP_FLAGMASK) != RD_KAFKA_OP_FETCH)
                return 0;
        buffer = op->rko_u.fetch.rkbuf;
        if (!buffer)
                return 0;
        records = rd_refcnt_get(&buffer->rkbuf_refcnt);
        return buffer->rkbuf_buf.rbuf_size / (size_t)(records > 0 ? records : 1);
}
