// SPDX-License-Identifier: GPL-2.0
/*
 * A provider for the kernel's own configfs-tsm, as which the real sev-guest driver registers on SNP hardware. Its
 * reports come from a process that holds /dev/tsm-backend, one at a time:
 *
 * read():  u32 privlevel, u8 inblob[64]
 * write(): s32 result, u32 outblob's length, u32 auxblob's length, outblob, auxblob
 *
 * For tests alone; nothing of it ships.
 */
#include <linux/completion.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/tsm.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#define INBLOB_LEN 64
#define MAX_BLOB SZ_32K

struct question {
	u32 privlevel;
	u8 inblob[INBLOB_LEN];
};

struct answer {
	s32 result;
	u32 outlen;
	u32 auxlen;
};

/* lock guards what follows; tsm_report_new() itself is called for one report at a time. */
static DEFINE_MUTEX(lock);
static DECLARE_WAIT_QUEUE_HEAD(asked);
static DECLARE_COMPLETION(answered);
static struct question question;
static struct tsm_report *waiting; /* who waits for the answer */
static int result;
static bool unread; /* the backend has not taken the question yet */
static bool served; /* there is a backend */

static int test_report_new(struct tsm_report *report, void *data)
{
	long left;
	int rc;

	if (report->desc.inblob_len != INBLOB_LEN)
		return -EINVAL; /* as sev_report_new() does */
	mutex_lock(&lock);
	if (!served) {
		mutex_unlock(&lock);
		return -ENXIO;
	}
	question.privlevel = report->desc.privlevel;
	memcpy(question.inblob, report->desc.inblob, INBLOB_LEN);
	waiting = report;
	result = -EIO;
	reinit_completion(&answered);
	unread = true;
	mutex_unlock(&lock);
	wake_up(&asked);

	left = wait_for_completion_killable_timeout(&answered, 60 * HZ);

	mutex_lock(&lock);
	rc = left > 0 ? result : left < 0 ? left : -ETIMEDOUT;
	waiting = NULL;
	unread = false;
	mutex_unlock(&lock);
	return rc;
}

static bool test_attr_visible(int n)
{
	return n == TSM_REPORT_GENERATION || n == TSM_REPORT_PROVIDER ||
	       n == TSM_REPORT_PRIVLEVEL || n == TSM_REPORT_PRIVLEVEL_FLOOR;
}

static bool test_bin_attr_visible(int n)
{
	return n == TSM_REPORT_INBLOB || n == TSM_REPORT_OUTBLOB || n == TSM_REPORT_AUXBLOB;
}

static const struct tsm_ops test_ops = {
	.name = "sev_guest",
	.report_new = test_report_new,
	.report_attr_visible = test_attr_visible,
	.report_bin_attr_visible = test_bin_attr_visible,
};

static int backend_open(struct inode *inode, struct file *file)
{
	int rc = -EBUSY;

	mutex_lock(&lock);
	if (!served) {
		served = true;
		rc = 0;
	}
	mutex_unlock(&lock);
	return rc;
}

static int backend_release(struct inode *inode, struct file *file)
{
	mutex_lock(&lock);
	served = false;
	if (waiting)
		complete(&answered); /* with -EIO */
	mutex_unlock(&lock);
	return 0;
}

static ssize_t backend_read(struct file *file, char __user *to, size_t n, loff_t *offset)
{
	struct question q;

	if (n < sizeof(q))
		return -EINVAL;
	if (wait_event_interruptible(asked, READ_ONCE(unread)))
		return -ERESTARTSYS;
	mutex_lock(&lock);
	q = question;
	unread = false;
	mutex_unlock(&lock);
	return copy_to_user(to, &q, sizeof(q)) ? -EFAULT : sizeof(q);
}

/* blob copies one from the backend; there may be none. */
static u8 *blob(const char __user *from, u32 len)
{
	u8 *b;

	if (!len)
		return NULL;
	b = kvmalloc(len, GFP_KERNEL);
	if (!b)
		return ERR_PTR(-ENOMEM);
	if (copy_from_user(b, from, len)) {
		kvfree(b);
		return ERR_PTR(-EFAULT);
	}
	return b;
}

static ssize_t backend_write(struct file *file, const char __user *from, size_t n, loff_t *offset)
{
	struct answer a;
	u8 *out, *aux;
	ssize_t rc = n;

	if (n < sizeof(a))
		return -EINVAL;
	if (copy_from_user(&a, from, sizeof(a)))
		return -EFAULT;
	if (a.result > 0 || a.outlen > MAX_BLOB || a.auxlen > MAX_BLOB || n != sizeof(a) + a.outlen + a.auxlen)
		return -EINVAL;
	out = blob(from + sizeof(a), a.outlen);
	if (IS_ERR(out))
		return PTR_ERR(out);
	aux = blob(from + sizeof(a) + a.outlen, a.auxlen);
	if (IS_ERR(aux)) {
		kvfree(out);
		return PTR_ERR(aux);
	}

	mutex_lock(&lock);
	if (!waiting) {
		rc = -EPIPE;
	} else {
		result = a.result;
		if (!result) { /* they are the report's from now on */
			waiting->outblob = out;
			waiting->outblob_len = a.outlen;
			waiting->auxblob = aux;
			waiting->auxblob_len = a.auxlen;
			out = aux = NULL;
		}
		waiting = NULL;
		complete(&answered);
	}
	mutex_unlock(&lock);
	kvfree(out);
	kvfree(aux);
	return rc;
}

static const struct file_operations backend_fops = {
	.owner = THIS_MODULE,
	.open = backend_open,
	.release = backend_release,
	.read = backend_read,
	.write = backend_write,
};

static struct miscdevice backend = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tsm-backend",
	.fops = &backend_fops,
	.mode = 0600,
};

static int __init test_init(void)
{
	int rc = misc_register(&backend);

	if (rc)
		return rc;
	rc = tsm_register(&test_ops, NULL);
	if (rc)
		misc_deregister(&backend);
	return rc;
}

static void __exit test_exit(void)
{
	tsm_unregister(&test_ops);
	misc_deregister(&backend);
}

module_init(test_init);
module_exit(test_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("configfs-tsm reports from a process, for tests");
