"""Resources of `/api/v1`, one file each. They read the store and put jobs; `gymsmith.api` assembles them."""
