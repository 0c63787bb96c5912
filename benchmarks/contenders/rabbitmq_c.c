/* rabbitmq-c: what a program written in C needs for the same work.
 *
 * The roles and the conversation with the harness are those of common.py. The bodies are ready bytes, read from files,
 * and nothing that arrives is parsed: this is the floor that a client without any library around it stands on.
 */

#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#define EXCHANGE "postage-benchmark"
#define NOWHERE "warm-up"
#define WARM_UP 100
#define WARM_UP_CALLS 20
#define WINDOW 4096
#define CONFIRMS_EVERY 64 /* messages between two looks for confirms */
#define CHANNEL 1

struct options {
    const char *role, *host, *vhost, *queue, *body, *reply;
    int port, messages, confirms, persistent, prefetch, in_flight;
};

static struct options options = {"publish", "127.0.0.1", "/", "benchmark", "", "", 5672, 1, 0, 0, 0, 1};
static amqp_connection_state_t connection;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void check(int status, const char *what)
{
    if (status != AMQP_STATUS_OK) fail("%s: %s", what, amqp_error_string2(status));
}

static void check_rpc(const char *what)
{
    amqp_rpc_reply_t reply = amqp_get_rpc_reply(connection);
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("%s failed", what);
}

static amqp_bytes_t text(const char *characters)
{
    return amqp_cstring_bytes(characters);
}

/* The command line */

static int number_option(const char *word, const char *name, int *value)
{
    size_t length = strlen(name);
    if (strncmp(word, name, length) || word[length] != '=') return 0;
    *value = atoi(word + length + 1);
    return 1;
}

static int text_option(const char *word, const char *name, const char **value)
{
    size_t length = strlen(name);
    if (strncmp(word, name, length) || word[length] != '=') return 0;
    *value = word + length + 1;
    return 1;
}

static void parse(int count, char **words)
{
    for (int i = 1; i < count; i++) {
        const char *word = words[i];
        /* What this program has no use for is left out, as in common.py. */
        (void)(text_option(word, "role", &options.role) || text_option(word, "host", &options.host) ||
               text_option(word, "vhost", &options.vhost) || text_option(word, "queue", &options.queue) ||
               text_option(word, "body", &options.body) || text_option(word, "reply", &options.reply) ||
               number_option(word, "port", &options.port) || number_option(word, "messages", &options.messages) ||
               number_option(word, "confirms", &options.confirms) ||
               number_option(word, "persistent", &options.persistent) ||
               number_option(word, "prefetch", &options.prefetch) ||
               number_option(word, "in_flight", &options.in_flight));
    }
}

static amqp_bytes_t read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot read %s", path);
    fseek(file, 0, SEEK_END);
    amqp_bytes_t bytes = amqp_bytes_malloc((size_t)ftell(file));
    rewind(file);
    if (fread(bytes.bytes, 1, bytes.len, file) != bytes.len) fail("cannot read %s", path);
    fclose(file);
    return bytes;
}

/* The clock */

static double began, cpu_before;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void start(void)
{
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) fail("the harness has gone");
    cpu_before = cpu_seconds();
    began = now();
}

static void stop(double p50)
{
    double seconds = now() - began, cpu = cpu_seconds() - cpu_before;
    printf("{\"seconds\": %.9f, \"cpu\": %.6f, \"messages\": %d", seconds, cpu, options.messages);
    if (p50 > 0) printf(", \"p50\": %.9f", p50);
    puts("}");
    fflush(stdout);
}

/* Connecting, sending, receiving */

static void open_connection(void)
{
    connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    if (!socket || amqp_socket_open(socket, options.host, options.port)) fail("cannot connect");
    amqp_rpc_reply_t reply =
        amqp_login(connection, options.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest");
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail("cannot log in");
    amqp_channel_open(connection, CHANNEL);
    check_rpc("channel.open");
}

static void close_connection(void)
{
    amqp_channel_close(connection, CHANNEL, AMQP_REPLY_SUCCESS);
    amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
    amqp_destroy_connection(connection);
}

static amqp_basic_properties_t new_properties(void)
{
    amqp_basic_properties_t properties = {0};
    properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG;
    properties.content_type = text("application/json");
    properties.delivery_mode = options.persistent ? 2 : 1;
    return properties;
}

static void send_message(const char *key, const amqp_basic_properties_t *properties, amqp_bytes_t body)
{
    check(amqp_basic_publish(connection, CHANNEL, text(EXCHANGE), text(key), 0, 0, properties, body), "basic.publish");
}

static void receive(amqp_envelope_t *envelope)
{
    amqp_maybe_release_buffers(connection);
    if (amqp_consume_message(connection, envelope, NULL, 0).reply_type != AMQP_RESPONSE_NORMAL) fail("basic.deliver");
}

static void acknowledge(const amqp_envelope_t *envelope)
{
    check(amqp_basic_ack(connection, CHANNEL, envelope->delivery_tag, 0), "basic.ack");
}

static void cancel(amqp_bytes_t tag)
{
    amqp_basic_cancel(connection, CHANNEL, tag);
    check_rpc("basic.cancel");
}

/* Publishing */

static uint64_t confirmed;

/* Take the next confirm: at once (false where there is none), or wait for it. */
static int take_confirm(int wait)
{
    struct timeval at_once = {0, 0};
    amqp_frame_t frame;
    int status = amqp_simple_wait_frame_noblock(connection, &frame, wait ? NULL : &at_once);
    if (status == AMQP_STATUS_TIMEOUT) return 0;
    check(status, "confirms");
    if (frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD)
        fail("the broker refused a message");
    const amqp_basic_ack_t *ack = frame.payload.method.decoded;
    confirmed = ack->multiple ? ack->delivery_tag : confirmed + 1;
    amqp_maybe_release_buffers(connection);
    return 1;
}

static void await_messages(void)
{
    struct timespec pause = {0, 1000000};
    for (;;) {
        amqp_queue_declare_ok_t *queue =
            amqp_queue_declare(connection, CHANNEL, text(options.queue), 1, 0, 0, 0, amqp_empty_table);
        check_rpc("queue.declare");
        if (queue->message_count >= (uint32_t)options.messages) return;
        nanosleep(&pause, NULL);
    }
}

static void publish(void)
{
    amqp_bytes_t body = read_file(options.body);
    amqp_basic_properties_t properties = new_properties();
    for (int i = 0; i < WARM_UP; i++) send_message(NOWHERE, &properties, body);
    if (options.confirms) {
        amqp_confirm_select(connection, CHANNEL);
        check_rpc("confirm.select");
    }
    start();
    for (int sent = 0; sent < options.messages; sent++) {
        if (options.confirms && sent % CONFIRMS_EVERY == 0) {
            while (take_confirm(0)) continue;
            while ((uint64_t)sent - confirmed > WINDOW - CONFIRMS_EVERY) take_confirm(1);
        }
        send_message(options.queue, &properties, body);
    }
    if (options.confirms)
        while (confirmed < (uint64_t)options.messages) take_confirm(1);
    else
        await_messages();
    stop(0);
}

/* Consuming */

static void consume(void)
{
    if (options.prefetch) {
        amqp_basic_qos(connection, CHANNEL, 0, (uint16_t)options.prefetch, 0);
        check_rpc("basic.qos");
    }
    start();
    amqp_basic_consume(connection, CHANNEL, text(options.queue), text("consumer"), 0, 0, 0, amqp_empty_table);
    check_rpc("basic.consume");
    for (int handled = 0; handled < options.messages; handled++) {
        amqp_envelope_t envelope;
        receive(&envelope);
        acknowledge(&envelope);
        amqp_destroy_envelope(&envelope);
    }
    cancel(text("consumer"));
    stop(0);
}

/* RPC over direct reply-to */

static int calls;

static void send_request(amqp_bytes_t body)
{
    char number[16];
    snprintf(number, sizeof number, "%d", ++calls);
    amqp_basic_properties_t properties = new_properties();
    properties._flags |= AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG;
    properties.reply_to = text("amq.rabbitmq.reply-to");
    properties.correlation_id = text(number);
    send_message(options.queue, &properties, body);
}

/* Receive a reply and return the number of the call that it answers. */
static int receive_reply(void)
{
    char number[16] = "";
    amqp_envelope_t envelope;
    receive(&envelope);
    amqp_bytes_t id = envelope.message.properties.correlation_id;
    if (id.len < sizeof number) memcpy(number, id.bytes, id.len);
    amqp_destroy_envelope(&envelope);
    return atoi(number);
}

static int compare(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

static double call_in_turn(amqp_bytes_t body, int messages)
{
    double *latencies = calloc((size_t)messages, sizeof *latencies);
    for (int i = 0; i < messages; i++) {
        double sent_at = now();
        send_request(body);
        if (receive_reply() != calls) fail("a reply to another call");
        latencies[i] = now() - sent_at;
    }
    qsort(latencies, (size_t)messages, sizeof *latencies, compare);
    double median = latencies[messages / 2];
    free(latencies);
    return median;
}

static void call_at_once(amqp_bytes_t body)
{
    int last = calls + options.messages;
    for (int i = 0; i < options.in_flight && calls < last; i++) send_request(body);
    for (int i = 0; i < options.messages; i++) {
        receive_reply();
        if (calls < last) send_request(body);
    }
}

static void call(void)
{
    amqp_bytes_t body = read_file(options.body);
    amqp_basic_consume(connection, CHANNEL, text("amq.rabbitmq.reply-to"), text("replies"), 0, 1, 0, amqp_empty_table);
    check_rpc("basic.consume");
    call_in_turn(body, WARM_UP_CALLS);
    double median = 0;
    start();
    if (options.in_flight > 1)
        call_at_once(body);
    else
        median = call_in_turn(body, options.messages);
    stop(median);
}

static void respond(void)
{
    amqp_bytes_t body = read_file(options.reply);
    amqp_basic_consume(connection, CHANNEL, text(options.queue), text("responder"), 0, 0, 0, amqp_empty_table);
    check_rpc("basic.consume");
    start();
    for (int answered = 0; answered < options.messages + WARM_UP_CALLS; answered++) {
        amqp_envelope_t envelope;
        receive(&envelope);
        amqp_basic_properties_t properties = new_properties();
        properties._flags |= AMQP_BASIC_CORRELATION_ID_FLAG;
        properties.correlation_id = envelope.message.properties.correlation_id;
        check(amqp_basic_publish(connection, CHANNEL, amqp_empty_bytes, envelope.message.properties.reply_to, 0, 0,
                                 &properties, body),
              "basic.publish");
        acknowledge(&envelope);
        amqp_destroy_envelope(&envelope);
    }
    cancel(text("responder"));
    stop(0);
}

int main(int count, char **words)
{
    parse(count, words);
    if (!strcmp(options.role, "version")) {
        puts(amqp_version());
        return 0;
    }
    open_connection();
    if (!strcmp(options.role, "publish")) publish();
    else if (!strcmp(options.role, "consume")) consume();
    else if (!strcmp(options.role, "call")) call();
    else if (!strcmp(options.role, "respond")) respond();
    else fail("no role %s", options.role);
    close_connection();
    return 0;
}
